"""Checkpoints of real workers: written by any number of them, read by any other, the same under every strategy."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError
from tests.mesh.training.together import Place, engine_of, together
from tests.unit.inference.needs import without_torch
from training.checkpoint.access import load, open_saver
from training.checkpoint.api import Saver
from training.data.order import part
from training.run.engine import Engine
from training.run.group import Group

pytestmark = without_torch
FORMS = (
    (training_pb2.STRATEGY_SINGLE, 1),
    (training_pb2.STRATEGY_DDP, 2),
    (training_pb2.STRATEGY_FSDP, 3),
    (training_pb2.STRATEGY_TENSOR, 3),
    (training_pb2.STRATEGY_PIPELINE, 3),
)
"""Strategies with a number of workers, 1 to 3."""


class Net:
    """Odd sizes, so that no share is even; a buffer, and a weight that is not trained."""

    clip_norm = 1.0

    def __init__(self, job: Any) -> None:
        self.job = job

    def model(self) -> nn.Module:
        layers = nn.Sequential(nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 7), nn.LayerNorm(7), nn.Linear(7, 10))
        layers[0].bias.requires_grad_(False)
        layers[2].register_buffer("seen", torch.arange(5.0))
        return layers

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        return self.output_loss(model(batch[0]), batch)

    def output_loss(self, outputs: torch.Tensor, batch: Any) -> torch.Tensor:
        return functional.cross_entropy(outputs, batch[1])


class Wide(Net):
    """4 M parameters, 48 MB with the optimizer's."""

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(64, 2048), nn.Tanh(), nn.Linear(2048, 1900), nn.Linear(1900, 10))


def train(engine: Engine, group: Group, steps: int) -> None:
    samples = engine.trainer.samples()  # type: ignore[attr-defined]
    for step in range(steps):
        batch = np.arange(24) + 24 * step
        mine = part(batch, group.rank, [1.0] * group.world_size) if engine.data_parallel else batch
        engine.backward(samples.batch(mine), len(mine) / len(batch), [0.0, 0.0]).wait()
        engine.update()


def state_of(engine: Engine, step: int, group: Group) -> dict[str, Any]:
    progress = {"step": step, "world_size": group.world_size}
    return {**engine.state(), "scheduler": {}, "sanity": {"first": 0.1, "count": 3.0}, "progress": progress}


def save(engine: Engine, group: Group, home: Path, step: int, saver: Saver) -> None:
    """A checkpoint whose parts were gathered into one folder, as agents do."""
    saver.save(step, state_of(engine, step, group))
    (saved,) = saver.wait()
    whole = home / "whole" / str(step)
    whole.mkdir(parents=True, exist_ok=True)
    for name in saved.files:
        assert not (whole / name).exists(), f"two workers wrote {name}"
        os.link(home / f"rank-{group.rank}" / str(step) / name, whole / name)


def read(folder: Path) -> dict[str, Any]:
    """All of a checkpoint as one worker sees it."""
    alone = Group(0, 1, torch.device("cpu"))
    state = state_of(engine_of(training_pb2.STRATEGY_SINGLE, Net, alone), 0, alone)
    load(folder, state)
    return state


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: one for part_, it in value.items() for key, one in flat(it, f"{name}/{part_}").items()}
    return {name: value}


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    a, b = flat(one), flat(other)
    assert a.keys() == b.keys()
    for name, value in a.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, b[name]), name
        elif "param_groups" not in name:  # whose parameters may come in another order
            assert value == b[name], name


def every_form(place: Place, home: Path) -> None:
    for number, (strategy, size) in enumerate(FORMS):
        with place.group(size) as group:
            if group is not None:
                engine = engine_of(strategy, Net, group)
                train(engine, group, 3)
                written = home / f"from-{number}"
                save(engine, group, written, 10 + number, open_saver(written / f"rank-{group.rank}", group))
    for target, (strategy, size) in enumerate(FORMS):
        with place.group(size) as group:
            if group is not None:
                engine = engine_of(strategy, Net, group)
                to = home / f"to-{target}"
                saver = open_saver(to / f"rank-{group.rank}", group)
                for source in range(len(FORMS)):
                    state = state_of(engine, 0, group)
                    load(home / f"from-{source}" / "whole" / str(10 + source), state)
                    engine.load(state)
                    assert state["progress"] == {"step": 10 + source, "world_size": FORMS[source][1]}
                    save(engine, group, to, 10 + source, saver)


def test_what_any_number_of_workers_wrote_any_other_reads_under_every_strategy(tmp_path: Path) -> None:
    together(3, every_form, tmp_path)
    sources = [read(tmp_path / f"from-{source}" / "whole" / str(10 + source)) for source in range(len(FORMS))]
    for source, expected in enumerate(sources):
        for target in range(len(FORMS)):
            found = read(tmp_path / f"to-{target}" / "whole" / str(10 + source))
            assert found.pop("progress")["step"] == 10 + source
            assert_same(found, {name: value for name, value in expected.items() if name != "progress"})
        # All were trained on the same three batches.
        for name, value in flat(expected["model"]).items():
            torch.testing.assert_close(value, flat(sources[0]["model"])[name], rtol=1e-5, atol=1e-6)


def replicated(place: Place, home: Path) -> tuple[int, float, float]:
    """Bytes of this worker's part, seconds that the save held training up, seconds until it was whole."""
    with place.group(2) as group:
        assert group is not None
        engine = engine_of(training_pb2.STRATEGY_DDP, Wide, group)
        train(engine, group, 1)
        saver = open_saver(home / str(group.rank), group)
        saver.save(1, state_of(engine, 1, group))
        saver.wait()
        state = state_of(engine, 2, group)
        began = time.monotonic()
        saver.save(2, state)
        paused = time.monotonic() - began
        train(engine, group, 1)  # what comes after is not in it
        (saved,) = saver.wait()
        took = time.monotonic() - began
    return sum(saved.files.values()), paused, took


def test_what_all_have_is_written_once_and_training_goes_on_meanwhile(tmp_path: Path) -> None:
    (one, paused, took), (other, _, _) = together(2, replicated, tmp_path)
    whole = 3 * 4 * (64 * 2048 + 2048 + 2048 * 1900 + 1900 + 1900 * 10 + 10)
    assert whole < one + other < 1.01 * whole + 50_000
    assert max(one, other) < 0.51 * whole + 4 * 2048 * 1900, "no more than the mean and one tensor"
    assert paused < took
    steps = [path.name for path in sorted((tmp_path / "0").iterdir())]
    assert steps == ["1", "2"], "nothing half written is left"


def full(place: Place, home: Path) -> tuple[str, int]:
    """What a worker is told while the disk of rank 1 is full, and of which step the next checkpoint is."""
    with place.group(2) as group:
        assert group is not None
        engine = engine_of(training_pb2.STRATEGY_FSDP, Wide, group)
        train(engine, group, 1)
        saver = open_saver(home / str(group.rank), group)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if group.rank == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, limits[1]))
        saver.save(1, state_of(engine, 1, group))
        (first,) = saver.wait()
        left = [path.name for path in (home / str(group.rank)).iterdir()]
        assert left == [], "the room is given back at once"
        train(engine, group, 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        saver.save(2, state_of(engine, 2, group))
        (second,) = saver.wait()
        assert second.files
    return first.given_up, second.step


def test_a_checkpoint_for_which_one_disk_has_no_room_is_given_up_by_all_and_the_next_is_tried(tmp_path: Path) -> None:
    for why, step in together(2, full, tmp_path):
        assert why.startswith("worker 1's disk is full: [Errno 27] File too large: '")
        assert "/1/.1/__1_0.distcp" in why
        assert step == 2


def odd(place: Place, home: Path) -> tuple[str, ...]:
    """What a worker says while the folder of rank 1 cannot be made."""
    with place.group(2) as group:
        assert group is not None
        engine = engine_of(training_pb2.STRATEGY_DDP, Net, group)
        train(engine, group, 1)
        own = home / str(group.rank)
        if group.rank == 1:
            own.symlink_to("/dev/full")
        saver = open_saver(own, group)
        saver.save(1, state_of(engine, 1, group))
        try:
            saver.wait()
        except AimeshError as error:
            return type(error).__name__, str(error)
    return ("nothing",)


def test_a_folder_that_cannot_be_made_is_said_on_every_worker_at_once(tmp_path: Path) -> None:
    for kind, said in together(2, odd, tmp_path):
        assert kind == "DataLossError"
        assert "worker 1: [Errno" in said
