"""What jobs have measured of the network between their workers, kept for plans to go by. Pure."""

from __future__ import annotations

import math

from aimesh.training.v1 import training_pb2
from coordinator.state import State
from coordinator.training.orders import statuses_of

CHANGE = 0.25
"""By how much a figure must differ to be written: control-plane work grows with changes, not with jobs."""


def with_link(
    state: State, job: training_pb2.Job, table: training_pb2.StrategyTable
) -> training_pb2.StrategyTable | None:
    """The table with what rank 0 of a job says of its attempt's link; None when it says nothing that is news.

    Workers on one machine and on several, and tensors on CPUs and on GPUs, are links apart. The later attempt counts,
    by the leader's clock: what an earlier one says of a link is old.
    """
    status = statuses_of(state, job).get(0)
    if status is None or not status.HasField("link") or status.link.bandwidth <= 0:
        return None
    found = _filled_in(status.link, job)
    before = next((one for one in table.links if _kind(one) == _kind(found)), None)
    if before is not None and (_at(found) <= _at(before) or not _differ(found, before)):
        return None
    if before is not None:
        _between(found, before)
    made = training_pb2.StrategyTable()
    made.CopyFrom(table)
    del made.links[:]
    others = [one for one in table.links if _kind(one) != _kind(found)]
    made.links.extend(sorted([*others, found], key=_kind))
    return made


def _filled_in(said: training_pb2.Link, job: training_pb2.Job) -> training_pb2.Link:
    made = training_pb2.Link()
    made.CopyFrom(said)
    made.between_machines = len({worker.address for worker in job.attempt.workers}) > 1
    made.gpu = job.spec.resources.gpus > 0
    made.at.CopyFrom(job.attempt.began_at)
    return made


def _between(found: training_pb2.Link, before: training_pb2.Link) -> None:
    """Half the way to the new figures, by their logarithms: a link that was timed while its machines had no core to
    spare may look a hundred times slower than it is.
    """
    found.bandwidth = math.sqrt(found.bandwidth * before.bandwidth)
    if before.latency_s > 0 and found.latency_s > 0:
        found.latency_s = math.sqrt(found.latency_s * before.latency_s)


def _kind(link: training_pb2.Link) -> tuple[bool, bool]:
    return link.between_machines, link.gpu


def _at(link: training_pb2.Link) -> int:
    return link.at.ToNanoseconds()


def _differ(one: training_pb2.Link, other: training_pb2.Link) -> bool:
    pairs = ((one.bandwidth, other.bandwidth), (one.latency_s, other.latency_s))
    return any(max(pair) > (1 + CHANGE) * min(pair) for pair in pairs)
