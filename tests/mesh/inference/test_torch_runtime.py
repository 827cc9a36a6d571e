from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from inference.packaging import Package, package
from tests.mesh.inference.ask import tensor
from tests.mesh.inference.conftest import Server
from tests.unit.inference.needs import without_torch

pytestmark = [without_torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
EXPORTED, SCRIPT = "linear-exported", "linear-script"
X = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("torch")


@pytest.fixture(scope="module")
def exported(server: Server, home: Path) -> Iterator[Package]:
    from tests.unit.inference.torch_samples import write_exported

    packed = package(write_exported(home / "m.pt2"), EXPORTED, "1.0.0")
    server.load(packed)
    yield packed
    server.unload(EXPORTED)


@pytest.fixture(scope="module")
def script(server: Server, home: Path) -> Iterator[Package]:
    from tests.unit.inference.torch_samples import write_script

    packed = package(write_script(home / "m.pt"), SCRIPT, "1.0.0", inputs=["x:FP32:-1x3"], outputs=["y:FP32:-1x2"])
    server.load(packed)
    yield packed
    server.unload(SCRIPT)


def test_an_exported_program_answers(server: Server, exported: Package) -> None:
    from tests.unit.inference.torch_samples import WEIGHT

    answer = server.client.infer(EXPORTED, [tensor("x", X)])
    np.testing.assert_allclose(answer.as_numpy("y"), X @ np.array(WEIGHT, np.float32).T)
    np.testing.assert_array_equal(answer.as_numpy("rows"), [4])


def test_an_exported_programs_own_limits_are_the_callers_error(server: Server, exported: Package) -> None:
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*the program refused the input.*<= 64"):
        server.client.infer(EXPORTED, [tensor("x", np.zeros((65, 3), np.float32))])


def test_a_script_answers(server: Server, script: Package) -> None:
    from tests.unit.inference.torch_samples import WEIGHT

    answer = server.client.infer(SCRIPT, [tensor("x", X)])
    np.testing.assert_allclose(answer.as_numpy("y"), X @ np.array(WEIGHT, np.float32).T)


def test_wrong_inputs_are_refused_with_what_was_expected(server: Server, script: Package) -> None:
    with pytest.raises(InferenceServerException, match=r"Expected \[-1,3\], got \[3\]"):
        server.client.infer(SCRIPT, [tensor("x", X[0])])


def test_memory_is_near_its_estimate(server: Server, exported: Package) -> None:
    resident = server.stub(EXPORTED).memory_info().rss
    estimate = exported.version.requirements.memory_bytes
    print(f"resident {resident >> 20} MiB, estimate {estimate >> 20} MiB")
    assert 0.8 * resident < estimate < 2 * resident, "in the right order; the kernel counts differently each time"


def test_a_pickle_that_got_past_the_push_is_not_run(server: Server, home: Path) -> None:
    from tests.unit.inference.test_torch_packaging import with_pickle
    from tests.unit.inference.torch_samples import write_exported

    packed = package(write_exported(home / "trick.pt2"), "trick", "1.0.0")
    mark = home / "it-ran"
    with_pickle(home / "trick.pt2", mark)
    with pytest.raises(InferenceServerException, match=r"(?i)weights.only"):
        server.load(packed)
    assert not mark.exists()
