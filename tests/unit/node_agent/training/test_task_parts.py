"""What a task needs, where it lies, and how its processes are started."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from meshkit.process import ProcessId
from meshkit.tls import TlsSettings
from node_agent.training.environment import Site, argv, environment, threads
from node_agent.training.folder import Folder, TaskKey, checked_path, numbers_of, worker_folder
from node_agent.training.needs import copies_of, digests_of, needs_of, resume_of
from node_agent.training.roles import cast_of
from node_agent.training.state import TaskState, load_all, write
from node_agent.training.zygote import fixed

TRAIN = training_pb2.TASK_KIND_TRAIN
SITE = Site("n1", "10.0.0.7", 8.0, "eth1", {0: "GPU-a", 3: "GPU-d"})


def task(rank: int = 0, **more: object) -> training_pb2.TrainingTask:
    workers = [training_pb2.Worker(rank=each, node=f"n{each + 1}") for each in range(2)]
    return training_pb2.TrainingTask(job="j-1", attempt=2, rank=rank, kind=TRAIN, workers=workers, **more)  # type: ignore[arg-type]


def test_the_folder_of_a_task_follows_from_its_numbers() -> None:
    assert TaskKey.of(task(1)).folder == "2-1"
    planning = training_pb2.TrainingTask(job="j-1", kind=training_pb2.TASK_KIND_PLAN)
    assert TaskKey.of(planning).folder == "plan"
    assert numbers_of(worker_folder(12, 3)) == (12, 3)
    assert numbers_of("12-0-client") is None
    assert numbers_of("plan") is None


@pytest.mark.parametrize("job", ["", "../x", "a/b", "A", "-a", "a" * 64])
def test_a_job_that_could_lead_elsewhere_is_refused(job: str) -> None:
    with pytest.raises(InvalidInputError, match="is no job's id"):
        TaskKey.of(training_pb2.TrainingTask(job=job, kind=TRAIN))


@given(st.text(max_size=30))
def test_a_checked_path_stays_in_its_folder(path: str) -> None:
    try:
        found = checked_path(path, "file")
    except InvalidInputError:
        return
    place = Path("/folder") / found
    assert Path("/folder") in Path(*place.parts).parents
    assert ".." not in place.parts


def test_what_a_task_needs_lies_by_kind_and_all_of_it_is_kept() -> None:
    made = task()
    made.spec.code.archive = "c"
    made.spec.data.shards.add(name="a.npz", digest="s", bytes=5, chunk_list="l")
    made.base.files.add(path="1/model.pt2", digest="b")
    made.resume.files.add(path="rank0.bin", digest="r")
    made.copies.add(path="rank1.bin", digest="k")
    assert [(need.place, need.digest) for need in needs_of(made)] == [
        ("data/a.npz", "s"),
        ("base/1/model.pt2", "b"),
    ]
    assert [(need.place, need.digest) for need in resume_of(made)] == [("resume/rank0.bin", "r")]
    assert [need.place for need in copies_of(made)] == ["copies/rank1.bin"]
    assert digests_of(made) == {"c", "s", "l", "b", "r", "k"}
    assert needs_of(made)[0].file.chunks == "l"


def test_two_shards_of_one_name_and_one_that_leads_out_are_refused() -> None:
    made = task()
    made.spec.data.shards.add(name="a.npz", digest="1")
    made.spec.data.shards.add(name="a.npz", digest="2")
    with pytest.raises(InvalidInputError, match=r"two files named data/a\.npz"):
        needs_of(made)
    made.spec.data.shards[1].name = "../a.npz"
    with pytest.raises(InvalidInputError, match="leads out"):
        needs_of(made)


def test_a_worker_is_told_who_it_is_and_nothing_that_is_the_agents_own() -> None:
    made = task(1, rendezvous="10.0.0.1:4242")
    made.workers[1].gpus.extend([3, 0])
    tls = Site("n2", "10.0.0.7", 8.0, "", SITE.gpus, TlsSettings(Path("ca"), Path("cert"), Path("key")))
    base = {"PATH": "/bin", "AIMESH_AGENT_TLS_KEY": "x", "SECRET": "s", "NCCL_DEBUG": "INFO", "PYTHONPATH": "/p"}
    found = environment(made, tls, base)
    assert (found["RANK"], found["WORLD_SIZE"]) == ("1", "2")
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.1", "4242")
    assert found["CUDA_VISIBLE_DEVICES"] == "GPU-d,GPU-a"
    assert found["AIMESH_TLS_CA"] == "ca"
    assert (found["NCCL_DEBUG"], found["PATH"], found["PYTHONPATH"]) == ("INFO", "/bin", "/p")
    assert not {"SECRET", "AIMESH_AGENT_TLS_KEY", "GLOO_SOCKET_IFNAME"} & found.keys()


def test_the_process_at_which_workers_meet_chooses_its_port() -> None:
    found = environment(task(), SITE, {}, host=True)
    assert (found["MASTER_ADDR"], found["MASTER_PORT"]) == ("10.0.0.7", "0")
    assert found["GLOO_SOCKET_IFNAME"] == found["NCCL_SOCKET_IFNAME"] == "eth1"
    assert found["CUDA_VISIBLE_DEVICES"] == ""


def test_an_address_of_ip_6_is_taken_out_of_its_brackets_and_nonsense_refused() -> None:
    assert environment(task(rendezvous="[fd00::7]:99"), SITE, {})["MASTER_ADDR"] == "fd00::7"
    with pytest.raises(InvalidInputError, match="no host:port"):
        environment(task(rendezvous="nowhere"), SITE, {})
    made = task()
    made.workers[0].gpus.append(5)
    with pytest.raises(InvalidInputError, match="has no GPU 5"):
        environment(made, SITE, {})


@pytest.mark.parametrize(("asked", "threads_"), [(0.0, 8), (3.5, 3), (0.5, 1), (64.0, 8)])
def test_threads_are_what_was_asked_for_or_the_nodes_share(asked: float, threads_: int) -> None:
    made = task()
    made.spec.resources.cpu_cores = asked
    assert threads(made, SITE) == threads_


NAMES = st.sampled_from(
    ["RANK", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH"]
)


@given(st.dictionaries(NAMES, st.text(max_size=3)), st.dictionaries(NAMES, st.text(max_size=3)))
def test_only_what_is_read_when_a_process_begins_hinders_a_fork(one: dict[str, str], other: dict[str, str]) -> None:
    differ = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    assert (fixed(one) == fixed(other)) == (not differ & {"LD_PRELOAD", "LD_LIBRARY_PATH", "PYTHONPATH"})


def test_the_working_folder_is_no_import_path() -> None:
    assert argv("python", "training.worker", Path("/f")) == ["python", "-P", "-m", "training.worker", "/f"]


@pytest.mark.parametrize(
    ("kind", "rank", "federated", "roles"),
    [
        (training_pb2.TASK_KIND_PLAN, 0, False, ("planner", None, None, False)),
        (training_pb2.TASK_KIND_FINISH, 0, True, ("finisher", None, None, False)),
        (TRAIN, 0, False, ("worker", None, None, False)),
        (TRAIN, 1, False, ("worker", None, None, False)),
        (TRAIN, 0, True, ("aggregator", "aggregator", "client", False)),
        (TRAIN, 1, True, ("client", None, None, True)),
    ],
)
def test_which_processes_a_task_has(kind: int, rank: int, federated: bool, roles: tuple[object, ...]) -> None:
    strategy = training_pb2.STRATEGY_FEDERATED if federated else training_pb2.STRATEGY_DDP
    made = task(rank, plan=training_pb2.JobPlan(strategy=strategy))
    made.kind = kind  # type: ignore[assignment]
    cast = cast_of(made)
    host, client = cast.host and cast.host.name, cast.client and cast.client.name
    assert (cast.main.name, host, client, cast.restarts) == roles


def test_a_state_is_read_as_it_was_written_and_garbage_is_left_out(tmp_path: Path) -> None:
    state = TaskState.new(task(1))
    state.processes["worker"] = ProcessId(12, 3.5)
    state.offset, state.retired_at = 99, 5.0
    file = training_pb2.CheckpointFile(path="a", digest="d", bytes=1, chunk_list="l")
    state.written.append(training_pb2.Checkpoint(step=4, files=[file]))
    state.packed.append(training_pb2.CheckpointFile(path="b", digest="e"))
    state.task.copies.add(path="c", digest="f")
    folder = Folder(tmp_path / "j-1" / "2-1")
    write(folder, state.key, state.content())
    for name, text in (("1-0", "{"), ("3-0", '{"task": {}}'), ("4-0", "[]")):
        (tmp_path / "j-1" / name).mkdir()
        (tmp_path / "j-1" / name / "train.state.json").write_text(text)
    assert load_all(tmp_path) == [(folder, state)]
    assert state.made() == {"d", "l", "e", "f"}
