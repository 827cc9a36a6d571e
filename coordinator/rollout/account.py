"""What each version of a model did, added up from the counters that agents report. Pure.

An account only grows; what happened between two moments is the later account less the earlier.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from aimesh.membership.v1 import membership_pb2
from coordinator.rollout.window import Window

MOST_POINTS = 600
"""Of a memory trend; beyond, every other one goes."""


@dataclass(frozen=True)
class Account:
    """Sums over a version's replicas. Nothing in it is changed in place."""

    seconds: float = 0.0
    requests: int = 0
    failures: int = 0
    gateway_requests: int = 0
    gateway_failures: int = 0
    busy_ns: int = 0
    queue_ns: int = 0
    responses: int = 0
    latency: Mapping[int, int] = field(default_factory=dict)
    memory_bytes: float = 0.0
    """Of each replica at each step, summed; so is the next."""
    gpu_memory_bytes: float = 0.0
    measured: int = 0
    """How many of these there were with a known memory."""
    gpu_measured: int = 0
    cost: float = 0.0
    priced_s: float = 0.0
    """Seconds of replicas that this is the cost of."""
    unpriced_s: float = 0.0
    """Seconds of replicas on nodes without a price."""

    def __add__(self, other: Account) -> Account:
        return self._each(other, 1)

    def __sub__(self, other: Account) -> Account:
        return self._each(other, -1)

    def _each(self, other: Account, sign: int) -> Account:
        sums = {
            each.name: getattr(self, each.name) + sign * getattr(other, each.name)
            for each in fields(self)
            if each.name != "latency"
        }
        latency = Counter(self.latency)
        for bucket, count in other.latency.items():
            latency[bucket] += sign * count
        return Account(**sums, latency={bucket: count for bucket, count in latency.items() if count})

    def window(self, trend: Sequence[tuple[float, float]], quality: Mapping[str, Sequence[float]]) -> Window:
        """As judged."""
        return Window(
            seconds=self.seconds,
            requests=self.requests,
            failures=self.failures,
            gateway_requests=self.gateway_requests,
            gateway_failures=self.gateway_failures,
            busy_ns=self.busy_ns,
            queue_ns=self.queue_ns,
            latency=self.latency,
            responses=self.responses,
            memory_bytes=self.memory_bytes / self.measured if self.measured else None,
            gpu_memory_bytes=self.gpu_memory_bytes / self.gpu_measured if self.gpu_measured else None,
            memory_trend=trend,
            cost=self.cost if self.cost and not self.unpriced_s else None,
            replica_s=self.priced_s,
            quality=quality,
        )


def done_between(before: membership_pb2.ModelLoad, now: membership_pb2.ModelLoad) -> Account:
    """What one replica did between two reports.

    Triton's counters begin anew with each load of the model, and the agent's of the traces with each start of the
    agent: a group of counters of which one has fallen is counted from 0.
    """
    held = before
    if any(getattr(now, name) < getattr(held, name) for name in ("successes", "failures", "success_ns", "queue_ns")):
        held = membership_pb2.ModelLoad()
    successes, failures = now.successes - held.successes, now.failures - held.failures
    fell = any(now.latency_buckets.get(key, 0) < count for key, count in before.latency_buckets.items())
    seen: Mapping[int, int] = {} if fell else before.latency_buckets
    latency = {key: count - seen.get(key, 0) for key, count in now.latency_buckets.items()}
    return Account(
        requests=successes + failures,
        failures=failures,
        busy_ns=now.success_ns - held.success_ns,
        queue_ns=now.queue_ns - held.queue_ns,
        responses=now.responses - (before.responses if now.responses >= before.responses else 0),
        latency={key: count for key, count in latency.items() if count},
    )


def memory_of(load: membership_pb2.ModelLoad) -> Account:
    """One replica's memory at one moment."""
    return Account(
        memory_bytes=load.resident_bytes,
        measured=1 if load.resident_bytes else 0,
        gpu_memory_bytes=load.gpu_memory_bytes,
        gpu_measured=1 if load.gpu_memory_bytes else 0,
    )


def cost_of(price_an_hour: float | None, share: float, seconds: float) -> Account:
    """What one replica with this share of its node cost."""
    if price_an_hour is None:
        return Account(unpriced_s=seconds)
    return Account(cost=price_an_hour * share * seconds / 3600, priced_s=seconds)


@dataclass(frozen=True)
class Book:
    """One version's account since a moment, and what of its past is still needed."""

    total: Account = field(default_factory=Account)
    trend: Sequence[tuple[float, float]] = ()
    """(second since the beginning, mean memory of a replica)."""
    pages: Sequence[tuple[float, Account]] = ((0.0, Account()),)
    """(second, the account at that moment), oldest first."""

    def with_step(self, done: Account, *, page_s: float, keep_s: float) -> Book:
        """After one more step; with a page every page_s seconds, for keep_s seconds."""
        total = self.total + done
        trend = [*self.trend]
        if done.measured:
            trend.append((total.seconds, done.memory_bytes / done.measured))
            if len(trend) > MOST_POINTS:
                trend = trend[::2]
        pages = [*self.pages]
        if total.seconds - pages[-1][0] >= page_s:
            pages.append((total.seconds, total))
            while len(pages) > 1 and pages[1][0] <= total.seconds - keep_s:
                pages.pop(0)
        return replace(self, total=total, trend=trend, pages=pages)

    def latest(self, every_s: float) -> tuple[Account, Sequence[tuple[float, float]]]:
        """The account and the trend since the last multiple of so many seconds, to the page before it.

        Windows that follow each other begin at moments that nothing measured has chosen.
        """
        start = self.total.seconds // every_s * every_s
        at, then = next(((at, page) for at, page in reversed(self.pages) if at <= start), self.pages[0])
        return self.total - then, [(second - at, value) for second, value in self.trend if second >= at]
