"""Who may have which nodes, what is left of them, and what each node must hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from coordinator.placement import place
from coordinator.state import State
from coordinator.training import record
from coordinator.training.checkpoints import copies_needed, copies_of, newest
from coordinator.training.reserved import taken_by
from coordinator.training.rooms import Rooms
from coordinator.training.schedule import PATIENCE_S, crowded_out, in_turn, offer, preempted, to_keep, waits_long
from tests.unit.coordinator.test_placement import deployment, state_of
from tests.unit.coordinator.test_placement import version as version_of
from tests.unit.coordinator.training.world import GIB, node, spec


def job(job_id: str = "j", least: int = 1, most: int = 0, memory: int = 2, **changes: object) -> training_pb2.Job:
    asked = spec(least=least, most=most, memory=memory, **changes)  # type: ignore[arg-type]
    made = training_pb2.Job(id=job_id, spec=asked)
    made.state, made.phase = record.PENDING, record.QUEUED
    return made


def version(name: str, memory: int = 1, gpu: int = 0) -> registry_pb2.ModelVersion:
    made = version_of(name, memory=memory, gpu=gpu)
    made.runtime = "torch"
    return made


def running(made: training_pb2.Job, *nodes: str) -> training_pb2.Job:
    made.state, made.phase = record.RUNNING, record.TRAINING
    workers = [training_pb2.Worker(rank=rank, node=name) for rank, name in enumerate(nodes)]
    made.attempt.CopyFrom(training_pb2.Attempt(number=1, workers=workers, go=True))
    made.nodes[:] = nodes
    return made


def rooms_of(state: State, *jobs: training_pb2.Job) -> Rooms:
    state = replace(state, jobs={each.id: each for each in jobs})
    return Rooms(state, place(state))


def mesh(*names: str, memory: int = 8) -> State:
    return state_of([node(name, memory=memory) for name in names], [version("m", memory=4)], [])


def names(found: object) -> list[str]:
    return [worker.node for worker in found.workers]  # type: ignore[attr-defined]


def test_replicas_come_first() -> None:
    state = state_of([node("a"), node("b", memory=4)], [version("m", memory=7)], [deployment("m", 1)])
    rooms = rooms_of(state)
    assert names(offer(job(), rooms)) == ["b"]
    assert "a: a worker needs 2.00 GiB of memory, 1.00 GiB are free" in offer(job(least=2), rooms).reason


def test_a_reserved_job_keeps_its_room_from_replicas() -> None:
    state = state_of([node("a")], [version("m", memory=7)], [deployment("m", 1)])
    kept = running(job(reserved=True), "a")
    assert place(replace(state, jobs={"j": kept})).assignments == {}
    other = running(job(), "a")
    placed = replace(state, jobs={"j": other})
    assert place(placed).assignments == {"a": {("m", "1.0.0")}}
    rooms = Rooms(placed, place(placed))
    assert crowded_out(rooms, [other]) == {"j": "its room is needed for models on a: 1.00 GiB of memory are missing"}


def test_of_jobs_whose_room_is_needed_the_lowest_goes_and_no_more_than_must() -> None:
    state = state_of([node("a")], [version("m", memory=4)], [deployment("m", 1)])
    jobs = [running(job("low", priority=-1), "a"), running(job("mid"), "a"), running(job("high", priority=1), "a")]
    assert set(crowded_out(rooms_of(state, *jobs), jobs)) == {"low"}


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"resources": training_pb2.Resources(node_labels={"zone": "x"})}, "label zone is '', not 'x'"),
        ({"resources": training_pb2.Resources(gpus=1)}, "a worker needs 1 GPUs, it has 0"),
        ({"resources": training_pb2.Resources(cpu_cores=5)}, "a worker needs 5 cores, it has 4"),
    ],
)
def test_every_node_says_why_not(changes: dict[str, object], why: str) -> None:
    assert f"a: {why}" in offer(job(**changes), rooms_of(mesh("a"))).reason  # type: ignore[arg-type]


def test_a_node_without_torch_is_no_worker() -> None:
    bare = node("a")
    bare.runtimes.clear()
    bare.runtimes["torch"] = "2.9"  # for models; agent.training.enabled is false
    assert "a: takes no workers" in offer(job(), rooms_of(state_of([bare], [], []))).reason


def test_who_holds_the_checkpoint_comes_first_and_ranks_stay() -> None:
    holder = node("c", memory=4)
    holder.report.blobs.append("x")
    made = job(most=2)
    made.checkpoint.files.add(path="0", digest="x")
    made.nodes[:] = ["c", "a"]
    rooms = rooms_of(state_of([node("a"), node("b", memory=16), holder], [], []))
    assert names(offer(made, rooms)) == ["c", "a"]


def test_speeds_count_where_they_differ() -> None:
    rooms = rooms_of(mesh("a", "b", "c"))
    made = job(least=3)
    assert [worker.speed for worker in offer(made, rooms, {"a": 100.0, "b": 104.0}).workers] == [0, 0, 0]
    assert [worker.speed for worker in offer(made, rooms, {"a": 100.0, "b": 51.0}).workers] == [100, 51, 76]


def test_only_what_helps_gives_way() -> None:
    jobs = [running(job("x", memory=5), "a"), running(job("y", memory=5), "b"), running(job("z", memory=5), "c")]
    jobs[1].created_at.seconds = 5  # the youngest
    high = job("high", least=1, memory=6, priority=1)
    rooms = rooms_of(mesh("a", "b", "c"), *jobs)
    assert preempted(high, rooms, jobs)[0] == ["y"]
    high.spec.resources.min_workers = high.spec.resources.max_workers = 4
    assert preempted(high, rooms, jobs)[0] == []
    jobs[1].phase = record.STOPPING
    high.spec.resources.min_workers = high.spec.resources.max_workers = 1
    given, found = preempted(high, rooms, jobs)
    assert (given, names(found)) == ([], ["b"]), "who stops already is counted on"


def test_the_higher_and_then_the_older_is_first() -> None:
    made = [job("a"), job("b"), job("c", priority=1)]
    made[0].created_at.seconds = 9
    assert [each.id for each in in_turn(made)] == ["c", "b", "a"]


@given(
    memories=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    least=st.integers(1, 4),
    more=st.integers(0, 3),
    memory=st.integers(1, 6),
    gpus=st.integers(0, 2),
)
def test_an_offer_is_all_or_none_and_fits(memories: list[int], least: int, more: int, memory: int, gpus: int) -> None:
    state = state_of([node(f"n{place}", memory=size, gpus=place) for place, size in enumerate(memories)], [], [])
    made = job(least=least, most=least + more, memory=memory)
    made.spec.resources.gpus = gpus
    rooms = rooms_of(state)
    found = offer(made, rooms)
    assert bool(found.workers) != bool(found.reason)
    assert not found.workers or least <= len(found.workers) <= least + more
    assert offer(made, rooms) == found, "asking takes nothing"
    made.phase = record.TRAINING
    made.attempt.CopyFrom(training_pb2.Attempt(workers=found.workers))
    for name, took in taken_by(made).items():
        assert took.memory <= state.nodes[name].capacity.memory_bytes
        assert len(took.gpus) <= len(state.nodes[name].capacity.gpus)
    taken = [(worker.node, gpu) for worker in found.workers for gpu in worker.gpus]
    assert len(set(taken)) == len(taken) == gpus * len(found.workers)


def status(rank: int, *steps: int) -> training_pb2.TaskStatus:
    return training_pb2.TaskStatus(
        rank=rank,
        checkpoints=[
            training_pb2.Checkpoint(
                step=step, files=[training_pb2.CheckpointFile(path=f"{rank}", digest=f"{rank}/{step}", bytes=1)]
            )
            for step in steps
        ],
    )


def test_a_checkpoint_counts_once_every_part_has_two_holders() -> None:
    made = running(job(least=2), "a", "b")
    statuses = {0: status(0, 20, 10), 1: status(1, 10)}
    held = {"a": {"0/20", "0/10"}, "b": {"1/10"}}
    assert newest(made, statuses, held, 2) is None
    assert copies_of(made, statuses, held, ["a", "b"]) == {
        0: [training_pb2.CheckpointFile(path="1", digest="1/10", bytes=1)],
        1: [training_pb2.CheckpointFile(path="0", digest=f"0/{step}", bytes=1) for step in (10, 20)],
    }
    held = {"a": {"0/20", "0/10", "1/10"}, "b": {"1/10", "0/10", "0/20"}}
    found = newest(made, statuses, held, 2)
    assert found is not None
    assert (found.step, found.world_size, [file.digest for file in found.files]) == (10, 2, ["0/10", "1/10"])
    made.checkpoint.step = 10
    assert newest(made, statuses, held, 2) is None, "it is recorded"


def test_one_holder_is_enough_on_one_node() -> None:
    made = running(job(), "a")
    assert copies_of(made, {0: status(0, 10)}, {"a": {"0/10"}}, ["a"]) == {}
    assert newest(made, {0: status(0, 10)}, {"a": {"0/10"}}, copies_needed(["a"])) is not None


def test_a_parts_keeper_is_the_next_node_that_is_there() -> None:
    made = running(job(least=3), "a", "b", "c")
    statuses = {rank: status(rank, 10) for rank in range(3)}
    found = copies_of(made, statuses, {}, ["a", "c"])
    assert {rank: [file.digest for file in files] for rank, files in found.items()} == {
        2: ["0/10", "1/10"],
        0: ["2/10"],
    }


def test_gpu_memory_beside_replicas() -> None:
    state = state_of([node("a", gpus=1)], [version("m", gpu=12)], [deployment("m", 1)])
    made = job()
    made.spec.resources.gpus = 1
    made.spec.resources.gpu_memory_bytes = 8 * GIB
    assert "a worker needs 1 GPUs with 8.00 GiB, free are 4.00 GiB" in offer(made, rooms_of(state)).reason


def test_who_has_waited_for_long() -> None:
    made = job()
    made.waiting_since.seconds = 1000
    assert not waits_long(made, int((1000 + PATIENCE_S) * 1e9))
    assert waits_long(made, int((1001 + PATIENCE_S) * 1e9))
    made.phase = record.TRAINING
    assert not waits_long(made, int((1001 + PATIENCE_S) * 1e9))


@given(
    memories=st.lists(st.integers(1, 8), min_size=1, max_size=5),
    small=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 4)), max_size=6),
    least=st.integers(1, 4),
    memory=st.integers(1, 6),
)
def test_what_is_kept_is_enough_and_nobody_else_gets_it(
    memories: list[int], small: list[tuple[int, int]], least: int, memory: int
) -> None:
    state = state_of([node(f"n{place}", memory=size) for place, size in enumerate(memories)], [], [])
    others = [
        running(job(f"s{number}", memory=size), f"n{place}")
        for number, (place, size) in enumerate(small)
        if place < len(memories)
    ]
    large, rooms = job("large", least=least, memory=memory), rooms_of(state, *others)
    now = offer(large, rooms)
    kept = to_keep(large, rooms)
    possible = offer(large, rooms_of(state)).workers
    assert bool(kept) == bool(possible and not now.workers)
    assert len(kept) in (0, least)
    assert offer(large, rooms) == now, "asking takes nothing"
    free = [name for name, room in rooms.by_node.items() if room.memory >= memory * GIB]
    assert not kept or set(free) <= set(kept), "what is free already is not given away"
    rooms.keep(large.id, kept)
    assert not set(names(offer(job("later", most=5, memory=1), rooms))) & set(kept)
    for other in others:
        crowded = rooms.by_node[other.nodes[0]].memory < 0
        assert names(offer(other, rooms)) or not kept or crowded, "who has a place there keeps it"
        rooms.release(other.id)
    assert not kept or offer(large, rooms).workers


def test_planning_hears_what_is_free() -> None:
    state = state_of([node("a", gpus=2)], [version("m", memory=3, gpu=4)], [deployment("m", 1)])
    other = running(job("other", memory=1), "a")
    other.spec.resources.cpu_cores = 1
    made = job(least=2)
    made.spec.resources.gpus = 1
    found = offer(made, rooms_of(state, other)).workers
    assert [worker.memory_bytes for worker in found] == [2 * GIB, 2 * GIB], "of 4 GiB that are left, each has half"
    assert sorted(worker.gpu_memory_bytes for worker in found) == [12 * GIB, 16 * GIB]
    assert [(worker.cpu_cores, worker.agent_port) for worker in found] == [(1.5, 50)] * 2
