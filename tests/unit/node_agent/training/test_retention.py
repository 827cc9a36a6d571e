"""Whose folders a node removes."""

from __future__ import annotations

from aimesh.membership.v1 import membership_pb2
from node_agent.training.retention import GONE_S, Retention


def told(*jobs: str, unfinished: tuple[str, ...] = ()) -> membership_pb2.Assignments:
    return membership_pb2.Assignments(jobs=membership_pb2.KnownJobs(ids=jobs, unfinished=unfinished))


def test_a_job_that_the_mesh_does_not_know_is_gone_after_a_while() -> None:
    now = 0.0
    made = Retention(lambda: now)
    assert not made.lets_go("old", old=False), "nobody has said anything"
    made.tell(membership_pb2.Assignments())
    now = GONE_S * 9
    assert not made.lets_go("old", old=False), "a coordinator that says nothing of jobs"
    made.tell(told("kept"))
    assert not made.lets_go("old", old=False)
    now += GONE_S - 1
    assert not made.lets_go("old", old=False)
    now += 1
    assert (made.lets_go("old", old=False), made.lets_go("kept", old=False)) == (True, False)


def test_a_job_that_is_known_again_begins_anew() -> None:
    now = 0.0
    made = Retention(lambda: now)
    made.tell(told())
    assert not made.lets_go("job", old=False)
    made.tell(told("job"))
    assert not made.lets_go("job", old=False)
    now = GONE_S * 2
    made.tell(told())
    assert not made.lets_go("job", old=False)


def test_what_is_old_goes_unless_its_job_may_go_on() -> None:
    made = Retention(lambda: 0.0)
    assert not made.lets_go("paused", old=True), "nobody has said anything"
    made.tell(told("paused", "ended", unfinished=("paused",)))
    assert not made.lets_go("paused", old=True)
    assert not made.lets_go("ended", old=False)
    assert made.lets_go("ended", old=True)
    made.tell(told("ended"))
    assert not made.lets_go("paused", old=False), "it is unknown since a moment"
    assert made.lets_go("paused", old=True)
    assert not made._unknown_at, "nothing is remembered of what is gone"
