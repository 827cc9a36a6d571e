"""What a run found: figures, bars, and what went wrong. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tools.simulate.gauges import EtcdCounters, Usage
from tools.simulate.plan import Plan
from tools.simulate.statistics import Spread, rate

BAR_PROPAGATION_S = 1.0
"""A change is acknowledged by all whom it concerns in less than this (99th percentile): DESIGN.md."""
BAR_RESIDENT_BYTES = 500 * 1000 * 1000
"""A coordinator is smaller than this: DESIGN.md."""
PARTS = ("join", "deploy", "clients", "idle", "churn", "everyone")
"""The parts of a run, in order."""


@dataclass(frozen=True)
class Reading:
    """All gauges at one moment; `at` in seconds of a clock that only rises."""

    at: float
    etcd: EtcdCounters
    usage: Usage


@dataclass(frozen=True)
class Part:
    """One part of a run, from a reading to the next."""

    seconds: float
    etcd_writes: int
    """Keys written or deleted."""
    etcd_revisions: int
    """Transactions that wrote."""
    etcd_writes_per_s: float
    etcd_proposals_per_s: float
    cpu_cores: Mapping[str, float]
    """Cores kept busy on average, by process of the simulation."""
    other_cores: float
    """Cores kept busy on average by everything else on the machine."""


@dataclass(frozen=True)
class Machine:
    """What everything ran on, all at once."""

    cores: int
    load_before: float
    """One-minute load average before the run."""
    load_after: float


@dataclass(frozen=True)
class Report:
    """One run."""

    plan: Plan
    machine: Machine
    parts: Mapping[str, Part]
    joined_s: float
    """From the first Hello to the last Welcome."""
    join: Spread
    """Seconds a join, those of nodes that came back included."""
    clients_s: float
    """From the first client's connection until the last one had its endpoints."""
    deploy_s: float
    """From the first call until every replica was READY."""
    propagation: Mapping[str, Spread]
    """Seconds from a change to the acknowledgement of the last client that must see it, by kind; `all` but those that
    concern everyone."""
    api: Spread
    """Seconds a call of ApplyDeployment."""
    idle_heartbeats: int
    changes: int
    skipped: int
    superseded: int
    late_calls: int
    """Calls that deployed a model and were not answered in time, though they were heeded."""
    joins_failed: Mapping[str, int]
    """Tries to join that came to nothing and were made again elsewhere, by reason."""
    sessions_lost: Mapping[str, int]
    """Sessions of agents that nobody meant to end, by reason."""
    streams_lost: Mapping[str, int]
    """Streams of clients that nobody meant to end, by reason."""
    resident_bytes: Mapping[str, int]
    """The most that each process was seen to hold."""
    lost: Sequence[str] = field(default_factory=tuple)
    """Changes that did not arrive."""

    @property
    def largest_coordinator_bytes(self) -> int:
        """The most that any coordinator was seen to hold."""
        return max(size for name, size in self.resident_bytes.items() if name.startswith("coordinator"))

    @property
    def problems(self) -> list[str]:
        """What must never be, in words; empty when the mesh did what it promises."""
        found = [f"a change never arrived: {each}" for each in self.lost]
        if self.parts["idle"].etcd_revisions:
            found.append(
                f"{self.parts['idle'].etcd_revisions} transactions wrote to etcd while there were heartbeats only"
            )
        for what, lost in (("agents' sessions", self.sessions_lost), ("clients' streams", self.streams_lost)):
            found += [f"{count} {what} ended by themselves: {reason}" for reason, count in lost.items()]
        return found

    @property
    def bars(self) -> list[tuple[str, str, bool]]:
        """DESIGN.md's bars: (what, measured, whether it holds)."""
        found = []
        for kind, words in (
            ("all", "a change acknowledged by its clients"),
            ("everyone", "... by all clients at once"),
        ):
            if (spread := self.propagation[kind]).count:
                found.append((f"{words}, p99 < 1 s", f"{spread.p99:.3f} s", spread.p99 < BAR_PROPAGATION_S))
        most = self.largest_coordinator_bytes
        found.append(("largest coordinator < 500 MB", f"{most / 1e6:.0f} MB", most < BAR_RESIDENT_BYTES))
        return found


def part(before: Reading, after: Reading) -> Part:
    """What happened between two readings."""
    seconds = after.at - before.at
    cores = {name: rate(before.usage.cpu_s.get(name, 0.0), spent, seconds) for name, spent in after.usage.cpu_s.items()}
    machine = cores.pop("machine")
    return Part(
        seconds,
        after.etcd.writes - before.etcd.writes,
        after.etcd.revision - before.etcd.revision,
        rate(before.etcd.writes, after.etcd.writes, seconds),
        rate(before.etcd.proposals, after.etcd.proposals, seconds),
        cores,
        max(0.0, machine - sum(cores.values())),
    )
