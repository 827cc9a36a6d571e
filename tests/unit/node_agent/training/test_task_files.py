"""Code that is unpacked, blobs that are held and let go, logs that are read, limits that are set."""

from __future__ import annotations

import io
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from meshkit.errors import ExhaustedError, InvalidInputError, NotFoundError
from node_agent.store import ModelStore
from node_agent.training import limits, unpack
from node_agent.training.folder import Folder
from node_agent.training.holding import LINGER_S, Pins, hold_checkpoint, hold_file, outdated, reported
from node_agent.training.limits import Groups, memory_limit
from node_agent.training.logs import LogReader, read_points, tail_text
from node_agent.training.state import TaskState

D = [str(number) * 64 for number in range(10)]
"""Digests."""


def zipped(path: Path, *names: str, mode: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            entry = zipfile.ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, b"content of " + name.encode())
    return path


def test_code_is_unpacked_with_its_folders(tmp_path: Path) -> None:
    unpack.unpack(zipped(tmp_path / "z", "train.py", "pack/deep/a.py", "empty/"), tmp_path / "code")
    assert (tmp_path / "code/pack/deep/a.py").read_text() == "content of pack/deep/a.py"
    assert (tmp_path / "code/empty").is_dir()


@pytest.mark.parametrize("name", ["../x", "/etc/x", "a/../../x", "a\\x"])
def test_code_that_leads_out_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidInputError, match="leads out"):
        unpack.unpack(zipped(tmp_path / "z", name), tmp_path / "code")


def test_links_copies_of_a_name_bombs_and_broken_archives_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInputError, match="link or a device"):
        unpack.unpack(zipped(tmp_path / "z", "a", mode=stat.S_IFLNK | 0o777), tmp_path / "1")
    with pytest.warns(UserWarning, match="Duplicate"):
        twice = zipped(tmp_path / "z", "a", "a")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        unpack.unpack(twice, tmp_path / "2")
    (tmp_path / "z").write_bytes(b"no archive")
    with pytest.raises(InvalidInputError, match="cannot be read"):
        unpack.unpack(tmp_path / "z", tmp_path / "3")
    monkeypatch.setattr(unpack, "MOST_BYTES", 20)
    with pytest.raises(InvalidInputError, match="unpacks to more than"):
        unpack.unpack(zipped(tmp_path / "z", "a", "b"), tmp_path / "4")


@given(st.binary(max_size=300))
def test_no_archive_makes_unpacking_fail_in_another_way(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.mktemp("zip")
    good = io.BytesIO()
    with zipfile.ZipFile(good, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.py", "x" * 200)
    whole = bytearray(good.getvalue())
    whole[: len(data)] = data[: len(whole)]
    (folder / "z").write_bytes(whole)
    try:
        unpack.unpack(folder / "z", folder / "code")
    except InvalidInputError:
        return
    assert (folder / "code").is_dir()


async def test_a_checkpoint_becomes_blobs_and_takes_no_room_twice(tmp_path: Path) -> None:
    store, folder = ModelStore(tmp_path / "store", 1 << 30), Folder(tmp_path / "w")
    place = folder.checkpoints / "8"
    (place / "deep").mkdir(parents=True)
    (place / "a").write_bytes(b"part")
    (place / "deep" / "b").write_bytes(b"x" * (9 << 20))
    task = training_pb2.TrainingTask(attempt=3, workers=[training_pb2.Worker()])
    found = await hold_checkpoint(store, folder, task, training_pb2.Checkpoint(step=8))
    assert (found.step, found.attempt, found.world_size) == (8, 3, 1)
    assert [(file.path, file.bytes, bool(file.chunk_list)) for file in found.files] == [
        ("a", 4, False),
        ("deep/b", 9 << 20, True),
    ]
    assert {found.files[0].digest, found.files[1].digest, found.files[1].chunk_list} == store.held()
    assert store.path(found.files[1].digest).stat().st_ino == (place / "deep/b").stat().st_ino
    with pytest.raises(NotFoundError, match="checkpoint 9"):
        await hold_checkpoint(store, folder, task, training_pb2.Checkpoint(step=9))


async def test_a_checkpoint_that_does_not_fit_is_an_error_and_the_rest_stays(tmp_path: Path) -> None:
    store, path = ModelStore(tmp_path / "store", 100), tmp_path / "f"
    path.write_bytes(b"x" * 80)
    kept = await hold_file(store, path, "f")
    store.pin("training", {kept.digest})
    other = tmp_path / "g"
    other.write_bytes(b"y" * 80)
    with pytest.raises(ExhaustedError):
        await hold_file(store, other, "g")
    store.pin("training", ())
    held = await hold_file(store, other, "g")
    assert store.held() == {held.digest}


def test_what_is_pinned_stays_and_what_is_spare_goes_last(tmp_path: Path) -> None:
    store = ModelStore(tmp_path, 400)
    for digest in D[:4]:
        store.put(b"x" * 100, digest)
    store.pin("models", D[:1])
    store.spare([D[1], D[2]])
    assert store.make_room(100, ()) == [D[3]]
    assert set(store.make_room(300, ())) == {D[1], D[2]}
    with pytest.raises(ExhaustedError):
        store.make_room(400, ())
    assert store.held() == {D[0]}


def test_what_a_job_made_is_let_go_after_a_while_and_not_while_another_needs_it(tmp_path: Path) -> None:
    store, now = ModelStore(tmp_path, 1 << 20), 0.0
    pins = Pins(store, lambda: now)
    for digest in D[:5]:
        store.put(b"x", digest)
    pins.set(D[:4], D[:3], ())  # 3 is a shard, which no job has made; 4 is nobody's
    now = 1.0
    pins.set([D[0]], [D[0]], [D[2]])
    assert store.pinned() == {D[0], D[1], D[2]}
    store.pin("models", [D[1]])
    now = 2.0 + LINGER_S
    pins.set([D[0]], [D[0]], [D[2]])
    assert store.pinned() == {D[0], D[1]}
    assert store.held() == set(D[:5])
    pins.set((), (), ())
    now += 1.0 + LINGER_S
    pins.set((), (), ())
    assert store.held() == {D[1], D[3], D[4]}


@pytest.mark.parametrize(("keep", "left"), [(0, [9, 8]), (1, [9, 8]), (3, [9, 8, 7])])
def test_so_many_checkpoints_are_kept(keep: int, left: list[int]) -> None:
    state = TaskState.new(training_pb2.TrainingTask(job="j", kind=training_pb2.TASK_KIND_TRAIN))
    state.task.spec.checkpoint.keep = keep
    state.written = [training_pb2.Checkpoint(step=step) for step in (9, 8, 7, 6)]
    old = {each.step for each in outdated(state)}
    assert [each.step for each in state.written if each.step not in old] == left


def test_a_checkpoint_that_others_copy_stays_and_is_reported() -> None:
    state = TaskState.new(training_pb2.TrainingTask(job="j", kind=training_pb2.TASK_KIND_TRAIN, copying=7))
    state.written = [training_pb2.Checkpoint(step=step) for step in (9, 8, 7, 6)]
    assert [each.step for each in outdated(state)] == [6]
    assert [each.step for each in reported(state)] == [9, 8, 7]


@pytest.mark.parametrize(("tail", "said"), [(0, "old\na\nb\nc\n"), (2, "b\nc\n"), (9, "a\nb\nc\n")])
def test_a_log_is_read_from_its_last_lines_or_its_beginning(tmp_path: Path, tail: int, said: str) -> None:
    path = tmp_path / "log.txt"
    (tmp_path / "log.txt.1").write_text("old\n")
    path.write_text("a\nb\nc\nhalf")
    reader = LogReader(path, tail)
    if tail == 2:
        said = "c\n"  # the half line is one
    assert "".join(reader.first()) == said
    with path.open("a") as file:
        file.write(" more\nx")
    assert "".join(reader.more()) == "half more\n"
    path.write_text("anew\n")  # rotated
    assert "".join(reader.more()) == "anew\n"
    with path.open("a") as file:
        file.write("end")
    assert "".join(reader.more(all_of_it=True)) == "end"


def test_a_log_that_is_not_there_says_nothing(tmp_path: Path) -> None:
    assert list(LogReader(tmp_path / "none", 3).first()) == []
    assert tail_text(tmp_path / "none") == ""


def test_points_of_all_attempts_are_read_in_order(tmp_path: Path) -> None:
    for name, steps in (("10-0", [5, 6]), ("2-0", [1, 2]), ("2-1", [9]), ("plan", [8])):
        (tmp_path / name).mkdir()
        lines = "".join(f'{{"point": {{"step": "{step}"}}}}\n' for step in steps)
        (tmp_path / name / "events.jsonl").write_text(f'{{"port": 1}}\n{lines}{{"point"')
    found = [point for points in read_points(tmp_path) for point in points]
    assert [(point.attempt, point.step) for point in found] == [(2, 1), (2, 2), (10, 5), (10, 6)]


def test_groups_are_made_where_the_one_above_was_delegated(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("0::/unit/main\n")
    unit = tmp_path / "root" / "unit"
    (unit / "main").mkdir(parents=True)
    assert Groups.find(tmp_path / "root", membership).make("a", 1) is None
    (unit / "cgroup.subtree_control").write_text("cpu memory pids")
    (unit / "cgroup.procs").touch()
    groups = Groups.find(tmp_path / "root", membership)
    assert groups.root == unit
    made = groups.make("j-1-0-worker", 1000)
    assert made == unit / "aimesh-j-1-0-worker"
    assert (made / "memory.max").read_text() == "1000"
    assert limits.enter(made, 42)
    assert (made / "cgroup.procs").read_text() == "42"
    (made / "memory.events").write_text("low 0\noom_kill 2\n")
    assert limits.oom_kills(made) == 2
    membership.write_text("4:memory:/x\n")
    assert Groups.find(tmp_path / "root", membership).root is None


@pytest.mark.parametrize(("asked", "limit"), [(0, 900), (500, 500), (5000, 900)])
def test_a_worker_never_gets_more_than_its_share_of_the_node(asked: int, limit: int) -> None:
    task = training_pb2.TrainingTask()
    task.spec.resources.memory_bytes = asked
    assert memory_limit(task, 1000, 0.9) == limit
