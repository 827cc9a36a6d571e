from __future__ import annotations

from pathlib import Path

import pytest
from tritonclient.grpc import model_config_pb2

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from meshkit.process import ProcessId
from node_agent.adoption import judge
from node_agent.gpuchoice import GpuShare
from node_agent.modelconfig import KEY
from node_agent.repository import Repository
from node_agent.served import Served, ServedRecord
from node_agent.triton.record import TritonRecord, read_record, write_record
from node_agent.work import LoadedAs, key_of

STUB, STRAY = ProcessId(10, 1.5), ProcessId(11, 2.5)
VERSION = registry_pb2.ModelVersion(name="m", version="1.0.0", digest="d" * 64)
PLAIN, SCHEDULED = key_of(VERSION), key_of(VERSION, routing_pb2.Scheduling(priority_levels=2))


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    template = tmp_path / "runtimes" / "llama" / "model.py"
    template.parent.mkdir(parents=True)
    template.write_text("template")
    return Repository(tmp_path, tmp_path / "runtimes", "", lambda digest: tmp_path / digest)


def _config(loaded: str, max_batch_size: int = 0) -> model_config_pb2.ModelConfig:
    config = model_config_pb2.ModelConfig(name="m", max_batch_size=max_batch_size)
    config.parameters[KEY].string_value = loaded
    return config


def test_what_is_just_as_recorded_goes_on(repository: Repository) -> None:
    loaded = LoadedAs(PLAIN, "llama", repository.template_digest("llama"))
    recorded = Served(PLAIN, GpuShare(1, 100), frozenset({STUB}))
    model, doubt = judge("m", _config(loaded.text), recorded, frozenset({STUB, STRAY}), repository)
    assert doubt == ""
    assert model is not None
    assert (model.version, model.key, model.gpu, model.note) == (VERSION, PLAIN, GpuShare(1, 100), "")
    assert (model.stubs, model.strays) == (frozenset({STUB}), frozenset({STRAY}))


def test_a_template_that_was_upgraded_is_wanted_anew(repository: Repository) -> None:
    loaded = LoadedAs(PLAIN, "llama", "of another template")
    model, _ = judge("m", _config(loaded.text), Served(PLAIN, None, frozenset()), frozenset(), repository)
    assert model is not None
    assert model.key != PLAIN
    assert model.version == VERSION


def test_scheduling_that_could_not_be_applied_is_said_again(repository: Repository) -> None:
    text = LoadedAs(SCHEDULED, "python", "").text
    recorded = Served(SCHEDULED, None, frozenset())
    notes = []
    for size in (0, 8):
        model, _ = judge("m", _config(text, size), recorded, frozenset(), repository)
        assert model is not None
        notes.append(model.note)
    assert notes[0].startswith("its scheduling is not applied")
    assert notes[1] == ""


@pytest.mark.parametrize(
    ("config", "recorded", "said"),
    [
        (model_config_pb2.ModelConfig(), Served(PLAIN, None, frozenset()), "did not load it"),
        (_config("garbage"), Served(PLAIN, None, frozenset()), "did not load it"),
        (_config(LoadedAs(PLAIN, "python", "").text), None, "not passed its test"),
        (_config(LoadedAs(SCHEDULED, "python", "").text), Served(PLAIN, None, frozenset()), "not passed its test"),
        (_config(LoadedAs(PLAIN, "python", "").text), Served(PLAIN, None, frozenset({STUB})), "a process of it died"),
    ],
)
def test_what_is_not_is_loaded_anew(
    repository: Repository, config: model_config_pb2.ModelConfig, recorded: Served | None, said: str
) -> None:
    model, doubt = judge("m", config, recorded, frozenset({STRAY}), repository)
    assert model is None
    assert said in doubt


def test_keys_tell_apart_what_has_to_be_loaded_anew() -> None:
    assert key_of(VERSION, routing_pb2.Scheduling()) == key_of(VERSION) == PLAIN
    other = key_of(VERSION, routing_pb2.Scheduling(priority_levels=3))
    assert len({PLAIN, SCHEDULED, other}) == 3
    found = LoadedAs.parse(LoadedAs(SCHEDULED, "llama", "abc").text)
    assert found is not None
    assert (found.key, found.version, found.digest, found.scheduled) == (SCHEDULED, "1.0.0", "d" * 64, True)


def test_records_survive_and_garbage_is_none(tmp_path: Path) -> None:
    served = Served(SCHEDULED, GpuShare(0, 5), frozenset({STUB, STRAY}))
    ServedRecord(tmp_path).put("m", served)
    again = ServedRecord(tmp_path)
    assert again.get("m") == served
    again.keep(())
    assert ServedRecord(tmp_path).get("m") is None
    (tmp_path / "served.json").write_text("[1]")
    assert ServedRecord(tmp_path).get("m") is None
    record = TritonRecord(STUB, "f", "secret")
    write_record(tmp_path, record)
    assert read_record(tmp_path) == record
    assert (tmp_path / "triton.json").stat().st_mode & 0o777 == 0o600
