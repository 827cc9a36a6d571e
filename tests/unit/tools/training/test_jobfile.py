from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.descriptor import Descriptor

from aimesh.training.v1 import training_pb2
from coordinator.training.check import check_job
from meshkit.errors import InvalidInputError
from tools.training.jobfile import UPLOADED, JobFile, parse_job, read_job
from tools.training.pack import pack
from tools.training.values import duration, keys_of, size, words

EXAMPLES = Path(__file__).parents[4] / "training" / "examples"
FULL = EXAMPLES / "full.toml"
LEAST = 'name = "n"\ntask = "classifier"\nepochs = 1\n'


def job(text: str, folder: Path) -> JobFile:
    path = folder / "job.toml"
    path.write_text(text)
    return read_job(path)


def uncommented(text: str) -> dict[str, Any]:
    """The file with every key that stands in a comment."""
    return tomllib.loads(re.sub(r"^# (\[[\w.]+\]|\w+ = .+)$", r"\1", text, flags=re.MULTILINE))


def names(found: dict[str, Any], before: str = "") -> set[str]:
    made = set()
    for key, value in found.items():
        if isinstance(value, dict) and key not in ("hyperparameters", "node_labels"):
            made |= names(value, f"{before}{key}.")
        else:
            made.add(before + key)
    return made


def known(kind: Descriptor, before: str = "") -> set[str]:
    """Every key that a file can set."""
    made = set()
    for name, field in keys_of(kind, UPLOADED).items():
        nested = field.message_type
        if nested and not nested.GetOptions().map_entry and nested.file.package == kind.file.package:
            made |= known(nested, f"{before}{name}.")
        else:
            made.add(before + name)
    return made


def test_the_full_example_has_every_key_and_no_other() -> None:
    held = names(uncommented(FULL.read_text()))
    assert held == known(training_pb2.JobSpec.DESCRIPTOR) | {"code.path", "data.files"}


def test_the_full_example_is_a_job_with_its_comments_and_without() -> None:
    assert check_job(pack(read_job(FULL)).spec).strategy == training_pb2.STRATEGY_AUTO
    everything = uncommented(FULL.read_text())
    for other in ("task", "code"):
        spec = parse_job({key: value for key, value in everything.items() if key != other}, FULL).spec
        assert spec.federated.delta == 1e-5
        assert spec.resources.memory_bytes == 2 << 30
        assert spec.max_duration.ToSeconds() == 12 * 3600


def test_what_the_full_example_says_is_so_when_left_out_is_so() -> None:
    said = check_job(pack(read_job(FULL)).spec)
    bare = LEAST.replace('"n"', '"digits-full"').replace("epochs = 1", "epochs = 10")
    bare += '[data]\nbuiltin = "digits"\nholdout = 0.2\n[hyperparameters]\nhidden = [64]\nlr = 0.001\n'
    assert check_job(parse_job(tomllib.loads(bare), FULL).spec) == said


JOBS = [path for path in sorted(EXAMPLES.glob("*.toml")) if "tune" not in tomllib.loads(path.read_text())]


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_example_is_a_job_that_says_how_to_run_it(path: Path) -> None:
    assert check_job(pack(read_job(path)).spec).name
    assert f"aimesh train submit training/examples/{path.name}" in path.read_text()


def test_values_become_the_contract_s(tmp_path: Path) -> None:
    text = (
        LEAST + 'strategy = "FSDP"\npriority = -3\n[hyperparameters]\nlr = 0.1\nname = "x"\nsizes = [1, 2]\non = true\n'
    )
    text += '[resources]\nmemory_bytes = "1.5GiB"\nnode_labels = { zone = "a" }\n[checkpoint]\nevery = "1.5m"\n'
    spec = job(text, tmp_path).spec
    assert spec.strategy == training_pb2.STRATEGY_FSDP
    assert dict(spec.hyperparameters) == {"lr": "0.1", "name": '"x"', "sizes": "[1, 2]", "on": "true"}
    assert (spec.resources.memory_bytes, dict(spec.resources.node_labels)) == (3 << 29, {"zone": "a"})
    assert (spec.checkpoint.every.ToSeconds(), spec.priority) == (90, -3)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "no key 'epoch'. did you mean 'epochs'"),
        ("[resource]\ngpus = 1", "no key 'resource'. did you mean 'resources'"),
        ("[resources]\nmin_worker = 1", "resources has no key 'min_worker'. did you mean 'min_workers'"),
        ("[federated]\nagregation = 'fedavg'", "did you mean 'aggregation'"),
        ("[data]\nshards = []", "data has no key 'shards'"),
        ("[data.partition]\nkinds = 'iid'", "data.partition has no key 'kinds'. did you mean 'kind'"),
        ("batch_size = 'many'", "batch_size = 'many' is not possible. it takes a whole number"),
        ("batch_size = true", "batch_size = True"),
        ("batch_size = -1", "batch_size = -1"),
        ("batch_size = 99999999999", "batch_size = 99999999999"),
        ("seed = 1.5", "seed = 1.5"),
        ("reserved = 1", "reserved = 1 is not possible. it takes true or false"),
        ("base_model = 1", "base_model = 1"),
        ("strategy = 'dpp'", "one of auto, single, ddp, fsdp, tensor, pipeline, federated"),
        ("stall_timeout = 60", "stall_timeout = 60 is no length of time"),
        ("resources = 3", "resources must be a table"),
        ("[resources]\nmemory_bytes = '4 gigs'", "resources.memory_bytes = '4 gigs' is no size"),
        ("[resources]\ncpu_cores = nan", "resources.cpu_cores = nan"),
        ("[resources]\nnode_labels = { a = 1 }", "resources.node_labels.a = 1"),
        ("[hyperparameters]\nwhen = 2026-01-01", "hyperparameters.when"),
        ("[hyperparameters]\nlr = inf", "hyperparameters.lr = inf"),
        ("data = 'digits'", "data must be a table"),
        ("[data]\nfiles = 'x.npz'", "data.files must be a list"),
        ("[data]\nfiles = ['x.npz']", "x.npz does not exist"),
        ("[data]\nfiles = ['parts/*.npz']", "matches no file"),
        ("[data]\nfiles = ['job.toml']", "is of no known form"),
        ("[code]\nentry = 'a:B'", "code.path must be a folder or a Python file"),
        ("[code]\npath = 'gone'", "is no folder and no Python file"),
        ("[code]\npath = '.'", "code.entry is missing"),
        ("[code]\npath = '.'\nentry = 'a:B'", "one of task and code"),
        ("not toml", "cannot be read"),
    ],
)
def test_a_wrong_key_or_value_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        job(LEAST + text, tmp_path)
    assert said in str(caught.value)
    assert "job.toml" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match=r"none\.toml cannot be read: No such file"):
        read_job(tmp_path / "none.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("b.npz", "a.npz", "notes.md"):
        (tmp_path / "parts" / name).write_text(name)
    (tmp_path / "own.py").write_text("class Trainer: ...")
    monkeypatch.chdir("/")
    found = job('name = "n"\nsteps = 1\n[data]\nfiles = ["parts"]\n[code]\npath = "own.py"\n', tmp_path)
    assert [path.name for path in found.files] == ["a.npz", "b.npz"]
    assert (found.code, found.spec.code.entry) == (tmp_path / "own.py", "own:Trainer")
    assert job(LEAST + '[data]\nfiles = ["parts/b*"]', tmp_path).files == (tmp_path / "parts" / "b.npz",)
    assert job(LEAST + '[data]\npath = "parts"', tmp_path).spec.data.path == str(tmp_path / "parts")
    assert job(LEAST + '[data]\npath = "/srv/x"', tmp_path).spec.data.path == "/srv/x"
    (tmp_path / "a.npz").write_text("x")
    with pytest.raises(InvalidInputError, match=r"has a\.npz twice"):
        job(LEAST + '[data]\nfiles = ["a.npz", "parts/a.npz"]', tmp_path)


def test_lengths_of_time_sizes_and_words() -> None:
    assert [duration(text, "") for text in ("250ms", "1.5s", "1d")] == [
        "0.250000000s",
        "1.500000000s",
        "86400.000000000s",
    ]
    assert [size(given, "") for given in ("1KiB", "1 MB", "0B", 7)] == [1024, 10**6, 0, 7]
    assert words(training_pb2.Aggregation.DESCRIPTOR)["trimmed_mean"] == "AGGREGATION_TRIMMED_MEAN"


def test_a_study_is_not_taken_for_a_job() -> None:
    with pytest.raises(InvalidInputError, match="a study of many jobs") as found:
        read_job(EXAMPLES / "tune.toml")
    assert "aimesh train tune start" in found.value.hint
