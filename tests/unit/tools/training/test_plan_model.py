"""`aimesh train plan --model`: by a model's file alone, whatever its form."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch import nn
from typer.testing import CliRunner

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tests.unit.training import makers
from tools.cli.main import app
from tools.training.planning import alike, plan_model
from training.analyse.analysis import Analysis
from training.strategy.job import plan_job

EXAMPLES = Path(__file__).parents[4] / "training" / "examples"


def plan(*arguments: object) -> dict[str, object]:
    answer = CliRunner().invoke(app, ["train", "plan", *map(str, arguments), "--json"])
    assert answer.exit_code == 0, answer.output
    return json.loads(answer.stdout)  # type: ignore[no-any-return]


def blocks(path: Path, count: int = 8) -> Path:
    weights = {
        f"model.layers.{place}.self_attn.q_proj.weight": np.zeros((256, 1024), np.float16) for place in range(count)
    }
    weights["model.embed_tokens.weight"] = weights["lm_head.weight"] = np.zeros((2048, 256), np.float16)
    save_file(weights, path)
    return path


@pytest.mark.parametrize("make", [makers.exported, makers.state_dict, makers.safetensors, makers.gguf])
def test_every_kind_of_file_is_planned(make: Callable[[Path], Path], tmp_path: Path) -> None:
    found = plan("--model", make(tmp_path / "file"), "--workers", 2)
    assert found["model"]["parameters"] > 0  # type: ignore[index]
    assert found["model"]["size_class"] == "small"  # type: ignore[index]
    assert found["defaults"]["cpu_cores"] == 2  # type: ignore[index]
    assert found["computed"]["memory_bytes"] == found["defaults"]["memory_bytes"]  # type: ignore[index]
    assert {"ddp", "fsdp"} <= {"single", *found["possible"], found["strategy"]}  # type: ignore[misc]


def test_for_people_it_is_the_table_of_a_job(tmp_path: Path) -> None:
    path = blocks(tmp_path / "m.safetensors")
    text = CliRunner().invoke(app, ["train", "plan", "--model", str(path), "--samples", "100000"]).stdout
    for part in ("medium, transformer: 3,145,728 parameters in 10 parts", "activations not known", "With ddp:"):
        assert part in text
    assert "by class: a medium model, transformer" in text
    assert "a model's file does not say which linear layers follow each other" in " ".join(text.split())


def test_every_possible_way_covers_all_samples_and_layers(tmp_path: Path) -> None:
    spec = training_pb2.JobSpec(name="m", epochs=1, resources=training_pb2.Resources(max_workers=3))
    made = plan_model(blocks(tmp_path / "m"), spec, 1000, alike(3))
    ways = {made.plan.strategy: made.shares, **made.possible}
    names = [layer.name for layer in made.plan.model.layers]
    assert names[0] == "model.embed_tokens"
    assert names[-1] == "lm_head"
    assert [name for share in ways[training_pb2.STRATEGY_PIPELINE] for name in share.layers] == names
    assert sum(share.samples for share in ways[training_pb2.STRATEGY_DDP]) == 1000


def test_a_sequential_is_numbered_and_other_models_are_not_cut(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    found = plan("--model", makers.state_dict(tmp_path / "a.pt", module=module))
    assert [layer["name"] for layer in found["model"]["layers"]] == ["0", "2"]  # type: ignore[index]
    other = plan("--model", makers.state_dict(tmp_path / "b.pt"))
    reasons = {option["strategy"]: option["reason"] for option in other["options"]}  # type: ignore[attr-defined]
    assert "in which order its parts are called" in reasons["pipeline"]


def test_the_state_of_a_large_model_replaces_the_default_of_its_class() -> None:
    profile = training_pb2.ModelProfile(parameters=10**11, parameter_bytes=2 * 10**11, size_class="xlarge", flops=2e11)
    plan = plan_job(training_pb2.JobSpec(), Analysis(profile, 1000), alike(2), training_pb2.StrategyTable())
    assert plan.computed.memory_bytes > 4 * profile.parameter_bytes > plan.defaults.memory_bytes
    assert plan.memory_bytes == plan.computed.memory_bytes


def test_a_job_with_a_file_in_place_of_its_code(tmp_path: Path) -> None:
    found = plan(EXAMPLES / "ddp.toml", "--model", makers.state_dict(tmp_path / "m.pt"), "--samples", 640)
    assert (found["name"], found["strategy"], found["samples"]) == ("digits-ddp", "ddp", 640)


@pytest.mark.parametrize("content", [b"just a text", bytes(range(200, 256)) * 9])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    answer = CliRunner().invoke(app, ["train", "plan", "--model", str(tmp_path / "file")])
    assert isinstance(answer.exception, InvalidInputError)
    assert "file does not say how many parameters it has" in answer.exception.message


def test_neither_a_job_nor_a_model_and_no_such_file(tmp_path: Path) -> None:
    assert isinstance(CliRunner().invoke(app, ["train", "plan"]).exception, InvalidInputError)
    missing = CliRunner().invoke(app, ["train", "plan", "--model", str(tmp_path / "none")])
    assert isinstance(missing.exception, InvalidInputError)
    assert missing.exception.reason == "PATH_MISSING"
