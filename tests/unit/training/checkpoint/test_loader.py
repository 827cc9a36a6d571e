"""A checkpoint that is damaged, incomplete, mixed up or of another model is refused with the file's or key's name."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from meshkit.errors import AimeshError, DataLossError, InvalidInputError
from tests.unit.inference.needs import without_torch

if TYPE_CHECKING:
    from torch import nn

pytestmark = [without_torch, pytest.mark.filterwarnings("ignore:torch.distributed is disabled")]


def net(width: int = 4, layers: int = 1) -> nn.Module:
    from torch import nn

    return nn.Sequential(*(nn.Linear(width, width) for _ in range(layers)))


def state_of(model: nn.Module, kind: str = "AdamW", **more: Any) -> dict[str, Any]:
    import torch
    from torch.distributed.checkpoint.state_dict import get_state_dict

    optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1)
    tensors, kept = get_state_dict(model, optimizer)
    return {"model": tensors, "optimizer": kept, "scheduler": {}, "progress": {"step": 3}, **more}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of one layer."""
    import warnings

    import torch

    from training.checkpoint.access import open_saver
    from training.run.group import Group

    home = tmp_path_factory.mktemp("written")
    torch.manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        saver = open_saver(home, Group(0, 1, torch.device("cpu")))
        saver.save(3, state_of(net()))
        (saved,) = saver.wait()
    assert set(saved.files) == {".metadata", "__0.sums.json", "__0_0.distcp"}
    return home / "3"


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy that may be spoilt."""
    return Path(shutil.copytree(written, tmp_path / "3"))


def refusal(folder: Path, state: dict[str, Any]) -> AimeshError:
    from training.checkpoint.access import load

    with pytest.raises(AimeshError) as refused:
        load(folder, state)
    return refused.value


def test_it_gives_back_what_was_saved(folder: Path) -> None:
    import torch

    from training.checkpoint.access import load

    torch.manual_seed(1)
    expected = net().state_dict()
    state = state_of(net())
    state["progress"] = {"step": 0}
    load(folder, state)
    assert state["progress"] == {"step": 3}
    assert all(torch.equal(state["model"][name], one) for name, one in expected.items())


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda folder: flip(folder / "__0_0.distcp"), "__0_0.distcp is damaged: its sum is"),
        (lambda folder: flip(folder / ".metadata"), ".metadata is damaged: its sum is"),
        (lambda folder: (folder / "__0_0.distcp").unlink(), "__0_0.distcp is missing"),
        (lambda folder: (folder / "__0_0.distcp").write_bytes(b"x"), "__0_0.distcp has 1 bytes, not"),
        (lambda folder: (folder / "__0.sums.json").unlink(), "has no __0.sums.json, which rank 0 writes"),
        (lambda folder: (folder / "__0.sums.json").write_text("{}"), "__0.sums.json is damaged"),
        (lambda folder: shutil.rmtree(folder), "has no __0.sums.json"),
    ],
)
def test_a_damaged_or_missing_file_is_named(folder: Path, spoil: Callable[[Path], None], says: str) -> None:
    spoil(folder)
    error = refusal(folder, state_of(net()))
    assert isinstance(error, DataLossError)
    assert says in error.message


def test_parts_that_are_missing_or_of_another_checkpoint_are_named(folder: Path) -> None:
    sums = folder / "__0.sums.json"
    sums.write_text(sums.read_text().replace('"world_size": 1', '"world_size": 2'))
    error = refusal(folder, state_of(net()))
    assert "has no part of rank 1: __1.sums.json is missing" in error.message
    (folder / "__1.sums.json").write_text('{"rank": 1, "step": 4, "world_size": 2, "files": {}}')
    error = refusal(folder, state_of(net()))
    assert isinstance(error, InvalidInputError)
    assert error.reason == "BAD_CHECKPOINT"
    assert "rank 0's part is of step 3 and 2 workers, rank 1's of step 4 and 2" in error.message


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: state_of(net(width=5)), "model.0.weight is [4, 4] in it and [5, 5] here"),
        (lambda: state_of(net(layers=2)), "it lacks model.1.weight and"),
        (lambda: state_of(net(), "Adagrad"), "it lacks optimizer.state.0.weight.sum"),
        (lambda: state_of(net(), "RMSprop"), "it lacks optimizer.state.0.weight.square_avg"),
        (lambda: state_of(net(), "SGD"), "it lacks optimizer.param_groups.0.momentum"),
        (lambda: state_of(net(), scheduler={"last_epoch": 1}), "it lacks scheduler.last_epoch"),
        (lambda: {**state_of(net()), "shapes": {"0.weight": [4, 4]}}, "it has model.0.bias, which this model has not"),
    ],
)
def test_a_checkpoint_of_another_model_or_optimizer_is_refused_with_the_key(
    folder: Path, make: Callable[[], dict[str, Any]], says: str
) -> None:
    error = refusal(folder, make())
    assert isinstance(error, InvalidInputError)
    assert error.reason == "BAD_CHECKPOINT"
    assert says in error.message


def test_a_stage_reads_its_tensors_and_the_whole_model_is_held_against_it(folder: Path) -> None:
    from training.checkpoint.access import load

    state = state_of(net())
    shapes = {name: list(one.shape) for name, one in state["model"].items()}
    del state["model"]["0.bias"], state["optimizer"]["state"]["0.bias"]
    load(folder, {**state, "shapes": shapes})


def test_a_parameter_that_had_no_gradient_before_has_zeros(tmp_path: Path) -> None:
    import torch

    from training.checkpoint.access import load, open_saver
    from training.run.group import Group

    state = state_of(net(layers=2))
    for name in ("1.weight", "1.bias"):
        del state["optimizer"]["state"][name]
    saver = open_saver(tmp_path, Group(0, 1, torch.device("cpu")))
    saver.save(1, state)
    saver.wait()
    found = state_of(net(layers=2))
    for one in found["optimizer"]["state"]["1.weight"].values():
        one.fill_(7)
    load(tmp_path / "1", found)
    assert all(not one.any() for one in found["optimizer"]["state"]["1.weight"].values())


class Runs:
    """Does something when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("it ran",))


def test_nothing_in_a_checkpoint_is_run(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from training.checkpoint.sums import write_sums

    (folder / ".metadata").write_bytes(pickle.dumps(Runs()))
    (folder / "__0.sums.json").unlink()
    write_sums(folder, 0, 3, 1)
    error = refusal(folder, state_of(net()))
    assert "it names builtins.print, which is no part of a checkpoint" in error.message
    assert "it ran" not in capsys.readouterr().out


def test_a_schedule_that_could_not_be_read_again_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    import torch

    from training.checkpoint.access import open_saver
    from training.run.group import Group

    saver = open_saver(tmp_path, Group(0, 1, torch.device("cpu")))
    with pytest.raises(InvalidInputError) as refused:
        saver.save(1, state_of(net(), scheduler={"path": Path("x")}))
    assert refused.value.reason == "BAD_TRAINER"
    assert "scheduler has a state that a checkpoint cannot hold" in refused.value.message
    assert not list(tmp_path.iterdir())
