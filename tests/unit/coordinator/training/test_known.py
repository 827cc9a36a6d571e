"""Which jobs each node is told of: exact, bounded, and never without one that may go on from what lies there."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from coordinator.state import State
from coordinator.training import record
from coordinator.training.known import KEPT_ENDED, Known, KnownJobs, known
from coordinator.training.record import MOST_NODES


def job(job_id: str, *nodes: str, ended_s: int = 0) -> training_pb2.Job:
    made = training_pb2.Job(id=job_id, nodes=nodes, state=record.RUNNING, phase=record.TRAINING)
    if ended_s:
        made.state, made.phase = record.SUCCEEDED, record.NONE
        made.ended_at.seconds = ended_s
    return made


def state_of(*jobs: training_pb2.Job) -> State:
    return replace(State(), jobs={each.id: each for each in jobs})


def test_nodes_hear_which_jobs_exist() -> None:
    jobs, one = KnownJobs(), job("one", "a", "b")
    first = jobs.of(state_of(one))
    assert first.nodes == dict.fromkeys("ab", Known(("one",), ("one",)))
    assert jobs.of(state_of(one)) is first, "nothing has changed"
    after = jobs.of(state_of(one, job("two", "b")))
    assert after.of("a") is first.of("a")
    assert after.of("b").ids == ("one", "two")
    assert jobs.of(state_of(job("one", "a", "b", ended_s=5))).of("b") == Known(("one",))
    assert jobs.of(state_of()).nodes == {}


def test_who_plans_and_who_works_are_told_before_the_record_remembers_them() -> None:
    planned = job("j", "a")
    planned.attempt.workers.add(node="b")
    assert jobs_of(planned) == {"a": ("j",), "b": ("j",)}


def test_of_ended_jobs_the_newest_are_told_of_and_all_that_have_not_ended() -> None:
    ended = [job(f"e{at}", "a", ended_s=at) for at in range(1, KEPT_ENDED + 4)]
    told = KnownJobs().of(state_of(*ended, job("paused", "a"))).of("a")
    assert len(told.ids) == KEPT_ENDED + 1
    assert not {"e1", "e2", "e3"} & set(told.ids)
    assert told.unfinished == ("paused",)


def test_a_job_of_more_nodes_than_its_record_remembers_is_told_to_all() -> None:
    jobs, wide = KnownJobs(), job("wide", *(f"n{place}" for place in range(MOST_NODES)))
    told = jobs.of(state_of(wide, job("small", "a")))
    assert told.of("forgotten") == Known(("wide",), ("wide",))
    assert told.of("a").ids == ("small", "wide")
    told = jobs.of(state_of(job("small", "a")))
    assert (told.of("forgotten"), told.of("a").ids) == (Known(), ("small",))


def jobs_of(*jobs: training_pb2.Job) -> dict[str, tuple[str, ...]]:
    return {node: each.ids for node, each in KnownJobs().of(state_of(*jobs)).nodes.items()}


_SPOTS = st.tuples(st.frozensets(st.sampled_from("abc")), st.integers(0, 3), st.booleans())


@given(st.lists(st.dictionaries(st.sampled_from(["x", "y", "z"]), _SPOTS), max_size=6))
def test_what_is_remembered_is_what_would_be_worked_out(
    course: list[dict[str, tuple[frozenset[str], int, bool]]],
) -> None:
    remembered = KnownJobs()
    for moment in course:
        many = [f"n{place}" for place in range(MOST_NODES)]
        records = [
            job(job_id, *(many if wide else sorted(nodes)), ended_s=ended)
            for job_id, (nodes, ended, wide) in moment.items()
        ]
        now, anew = remembered.of(state_of(*records)), KnownJobs().of(state_of(*records))
        assert [now.of(node) for node in "abcd"] == [anew.of(node) for node in "abcd"]
        for node in "abcd":
            assert now.of(node) == known(
                {
                    each.id: each.ended_at.ToNanoseconds()
                    for each in records
                    if len(each.nodes) > 3 or node in each.nodes
                }
            )
