from __future__ import annotations

import io
import json
import pickle
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from inference.packaging import package
from inference.signature import describe
from meshkit.errors import InvalidInputError
from tests.unit.inference.needs import without_torch

# TorchScript is deprecated by torch, and still what many people have.
pytestmark = [without_torch, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
INPUTS, OUTPUTS = ["x:FP32:-1x3"], ["y:FP32:-1x2"]


class Touch:
    """A pickle that makes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.unit.inference.torch_samples import write_exported

    return write_exported(tmp_path_factory.mktemp("torch") / "m.pt2")


def rewrite(path: Path, change: Callable[[str, bytes], bytes], extra: dict[str, bytes] | None = None) -> None:
    """Changes the records of a torch archive in place; names are without the archive's own directory."""
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(records)).partition("/")[0]
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in records.items():
            archive.writestr(name, change(name.partition("/")[2], content))
        for name, content in (extra or {}).items():
            archive.writestr(f"{root}/{name}", content)


def with_pickle(path: Path, mark: Path) -> None:
    """Puts a pickle that makes the file `mark` in the place of the example inputs."""
    import torch

    trick = io.BytesIO()
    torch.save(Touch(mark), trick)
    rewrite(path, lambda name, content: trick.getvalue() if name == "data/sample_inputs/model.pt" else content)


def with_program(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes the program in an archive."""

    def edit(name: str, content: bytes) -> bytes:
        if not name.startswith("models/"):
            return content
        program = json.loads(content)
        change(program)
        return json.dumps(program).encode()

    rewrite(path, edit)


def test_an_exported_program_says_its_own_tensors(exported: Path) -> None:
    version = package(exported, "m", "1.0.0").version
    assert version.runtime == "torch"
    assert dict(version.parameters) == {"entry": "m.pt2", "kind": "exported"}
    assert [describe(spec) for spec in version.signature.inputs] == ["x FP32 [-1, 3]"]
    assert [describe(spec) for spec in version.signature.outputs] == ["y FP32 [-1, 2]", "rows INT64 [1]"]


def test_shapes_that_are_sums_and_several_arguments(tmp_path: Path) -> None:
    import torch

    class Join(torch.nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.cat([a, b]).reshape(-1), a.sum() * (a.shape[0] * 2 + 1)

    sizes = {"a": {0: torch.export.Dim("n")}, "b": {0: torch.export.Dim("m")}}
    program = torch.export.export(Join(), (torch.zeros(2, 3), torch.zeros(4, 3)), dynamic_shapes=sizes)
    torch.export.save(program, tmp_path / "m.pt2")
    signature = package(tmp_path / "m.pt2", "m", "1.0.0").version.signature
    assert [describe(spec) for spec in signature.inputs] == ["a FP32 [-1, 3]", "b FP32 [-1, 3]"]
    assert [describe(spec) for spec in signature.outputs] == ["output_0 FP32 [-1]", "output_1 FP32 []"]


def test_torchscript_is_told_its_tensors(tmp_path: Path) -> None:
    from tests.unit.inference.torch_samples import write_script

    path = write_script(tmp_path / "m.pt")
    with pytest.raises(InvalidInputError, match="TorchScript, which does not say its tensors"):
        package(path, "m", "1.0.0")
    version = package(path, "m", "1.0.0", inputs=INPUTS, outputs=OUTPUTS).version
    assert dict(version.parameters) == {"entry": "m.pt", "kind": "script"}
    assert [describe(spec) for spec in version.signature.inputs] == ["x FP32 [-1, 3]"]


def test_an_exported_program_is_not_told_its_tensors(exported: Path) -> None:
    with pytest.raises(InvalidInputError, match="cannot be stated"):
        package(exported, "m", "1.0.0", inputs=INPUTS, outputs=OUTPUTS)


@pytest.mark.parametrize("modern", [True, False])
def test_a_state_dict_is_refused(tmp_path: Path, modern: bool) -> None:
    import torch

    torch.save({"weight": torch.zeros(3)}, tmp_path / "m.pt", _use_new_zipfile_serialization=modern)
    with pytest.raises(InvalidInputError, match=r"m\.pt is a pickle.*a state dict has no program.*torch\.export\.save"):
        package(tmp_path / "m.pt", "m", "1.0.0")


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "m.pkl").write_bytes(pickle.dumps(Touch(tmp_path / "ran")))
    with pytest.raises(InvalidInputError, match="is a pickle"):
        package(tmp_path / "m.pkl", "m", "1.0.0")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_program_that_is_cut_short(exported: Path, tmp_path: Path, part: float) -> None:
    whole = exported.read_bytes()
    (tmp_path / "m.pt2").write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(InvalidInputError, match="cut short"):
        package(tmp_path / "m.pt2", "m", "1.0.0")


def test_a_program_with_flipped_bits(exported: Path, tmp_path: Path) -> None:
    content = bytearray(exported.read_bytes())
    content[content.index(b"graph_module") + 5] ^= 1
    (tmp_path / "m.pt2").write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"broken at m/models/model\.json"):
        package(tmp_path / "m.pt2", "m", "1.0.0")


def test_example_inputs_that_would_run_code(exported: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(exported, tmp_path / "m.pt2"))
    with_pickle(path, tmp_path / "ran")
    with pytest.raises(InvalidInputError, match=r"could run code: record data/sample_inputs/model\.pt") as caught:
        package(path, "m", "1.0.0")
    assert caught.value.reason == "UNSAFE_MODEL"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "record", ["data/constants/custom_obj_0", "data/constants/opaque_obj_0", "data/aotinductor/m.so"]
)
def test_records_that_would_run_code(exported: Path, tmp_path: Path, record: str) -> None:
    path = Path(shutil.copy(exported, tmp_path / "m.pt2"))
    rewrite(path, lambda _, content: content, {record: b"x"})
    with pytest.raises(InvalidInputError, match=f"could run code: record {record}"):
        package(path, "m", "1.0.0")


def nodes(program: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = program["graph_module"]["graph"]["nodes"]
    return found


def values(program: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = program["graph_module"]["graph"]["tensor_values"]
    return found


def size(text: str) -> list[dict[str, Any]]:
    return [{"as_expr": {"expr_str": text, "hint": {"as_int": 2}}}, {"as_int": 3}]


TRICKS: dict[str, Callable[[dict[str, Any]], object]] = {
    "operator": lambda program: nodes(program)[0].update(target="torch.os.system"),
    "shape expression": lambda program: values(program)["x"].update(sizes=size("__import__('os').system('true')")),
    "shape expression that calls a method": lambda program: values(program)["x"].update(
        sizes=size("Symbol('s0').func.mro()")
    ),
    "shape expression of another kind": lambda program: values(program)["x"].update(sizes=size("lambda: 0")),
    "guard": lambda program: program.update(guards_code=["__import__('os').system('true') == 0"]),
    "guard that reads a class": lambda program: program.update(guards_code=["L['x'].__class__ == 0"]),
    "name": lambda program: values(program).update({"x): pass\nimport os": {}}),
    "parameter_name": lambda program: program["graph_module"]["signature"]["input_specs"][0]["parameter"].update(
        parameter_name='w"] + __import__("os")'
    ),
    "container": lambda program: program["graph_module"]["module_call_graph"][0]["signature"].update(
        in_spec=json.dumps([1, {"type": "collections.defaultdict", "context": "{}", "children_spec": []}])
    ),
    "shape expression in a tensor called metadata": lambda program: values(program).update(
        metadata={"sizes": size("eval('1')")}
    ),
}


@pytest.mark.parametrize("trick", TRICKS)
def test_programs_that_would_run_code(exported: Path, tmp_path: Path, trick: str) -> None:
    path = Path(shutil.copy(exported, tmp_path / "m.pt2"))
    with_program(path, TRICKS[trick])
    with pytest.raises(InvalidInputError, match=f"could run code: {re.split(' (in|that|of) ', trick)[0]}"):
        package(path, "m", "1.0.0")


def test_guards_on_sizes_are_no_harm(exported: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(exported, tmp_path / "m.pt2"))
    with_program(
        path, lambda program: program.update(guards_code=["L['x'].size()[0] <= 64", "1 < L['x'].stride()[0] * 2"])
    )
    assert package(path, "m", "1.0.0").version.runtime == "torch"


def test_a_program_of_other_things_than_tensors(tmp_path: Path) -> None:
    import torch

    class Scale(torch.nn.Module):
        def forward(self, x: torch.Tensor, by: int) -> torch.Tensor:
            return x * by

    torch.export.save(torch.export.export(Scale(), (torch.zeros(3), 2)), tmp_path / "m.pt2")
    with pytest.raises(InvalidInputError, match="takes the constant 'by' beside its tensors"):
        package(tmp_path / "m.pt2", "m", "1.0.0")
