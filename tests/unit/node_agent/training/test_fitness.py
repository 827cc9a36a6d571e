"""Which torch workers have, told by a Python that may be slow, broken or not there."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from node_agent.runtimes import TRAINING, installed_runtimes
from node_agent.settings import AgentSettings, TrainingSettings
from node_agent.training import fitness
from node_agent.training.fitness import Fitness, torch_version


def fitness_of(tmp_path: Path, **training: object) -> Fitness:
    return Fitness(AgentSettings(node_id="n", data_dir=tmp_path, training=TrainingSettings(**training)))  # type: ignore[arg-type]


def script(path: Path, content: str) -> Path:
    path.write_text(f"#!/bin/sh\n{content}\n")
    path.chmod(0o755)
    return path


def test_the_agents_own_python_is_known_at_once(tmp_path: Path) -> None:
    made = fitness_of(tmp_path)
    assert made.torch == installed_runtimes().get("torch", "")
    assert made.runtimes().get(TRAINING, "") == made.torch


def test_a_python_that_does_not_answer_in_time_is_not_known(tmp_path: Path) -> None:
    assert torch_version(script(tmp_path / "slow", "exec sleep 60"), within_s=0.1) is None
    assert torch_version(tmp_path / "none") == ""
    assert torch_version(script(tmp_path / "bare", "exit 1")) == ""
    assert torch_version(Path(sys.executable)) == installed_runtimes().get("torch", "")


async def test_another_python_is_asked_beside_everything_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "_AGAIN_S", 0.0)
    answers = iter([None, "9.9"])
    monkeypatch.setattr(fitness, "torch_version", lambda _: next(answers))
    made = fitness_of(tmp_path, python=tmp_path / "python")
    known = asyncio.Event()
    made.on_known = known.set
    assert (made.torch, made.unfit) == (None, ""), "what runs already goes on"
    assert TRAINING not in made.runtimes(), "and nothing new is placed"
    await made.find_out()
    assert known.is_set()
    assert made.runtimes()[TRAINING] == "9.9"


async def test_a_node_without_torch_or_not_enabled_says_why(tmp_path: Path) -> None:
    made = fitness_of(tmp_path, python=script(tmp_path / "python", "exit 1"))
    await made.find_out()
    assert f"has no torch for {tmp_path}/python" in made.unfit
    assert TRAINING not in made.runtimes()
    assert "agent.training.enabled is false" in fitness_of(tmp_path, enabled=False).unfit
    assert TRAINING not in fitness_of(tmp_path, enabled=False).runtimes()
