"""Whose folders a node removes."""

from __future__ import annotations

from aimesh.membership.v1 import membership_pb2
from node_agent.training.retention import GONE_S, Retention


def told(*jobs: str) -> membership_pb2.Assignments:
    return membership_pb2.Assignments(jobs=membership_pb2.KnownJobs(ids=jobs))


def test_a_job_that_the_mesh_does_not_know_is_gone_after_a_while() -> None:
    now = 0.0
    made = Retention(lambda: now)
    assert not made.gone("old"), "nobody has said anything"
    made.tell(membership_pb2.Assignments())
    now = GONE_S * 9
    assert not made.gone("old"), "a coordinator that says nothing of jobs"
    made.tell(told("kept"))
    assert not made.gone("old")
    now += GONE_S - 1
    assert not made.gone("old")
    now += 1
    assert (made.gone("old"), made.gone("kept")) == (True, False)


def test_a_job_that_is_known_again_begins_anew() -> None:
    now = 0.0
    made = Retention(lambda: now)
    made.tell(told())
    assert not made.gone("job")
    made.tell(told("job"))
    assert not made.gone("job")
    now = GONE_S * 2
    made.tell(told())
    assert not made.gone("job")
