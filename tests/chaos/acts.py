"""What can be done to a mesh, as data."""

from __future__ import annotations

import signal
from dataclasses import dataclass

from tests.chaos.proxy import Fault


@dataclass(frozen=True)
class Send:
    """A signal to processes."""

    number: signal.Signals
    targets: tuple[str, ...]


@dataclass(frozen=True)
class Start:
    """Starts those of the processes that do not run; over when they say that they do, unless it does not wait."""

    targets: tuple[str, ...]
    wait: bool = True


@dataclass(frozen=True)
class Recover:
    """Waits until the Triton of each node is another one than when the scenario began, and listens."""

    targets: tuple[str, ...]


@dataclass(frozen=True)
class Link:
    """A fault on the links from clients to servers; at least one connection must be there to have it."""

    clients: tuple[str, ...]
    targets: tuple[str, ...]
    fault: Fault


@dataclass(frozen=True)
class Clock:
    """Moves the wall clock of processes to so many seconds off."""

    targets: tuple[str, ...]
    offset_s: int


@dataclass(frozen=True)
class Arm:
    """Arms failpoints in processes; empty text for none."""

    targets: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Hit:
    """Waits until a failpoint has acted in one of the processes, which is the role `hit` from then on."""

    targets: tuple[str, ...]
    failpoint: str
    ends: bool = True
    """The process has ended by it; else it is stopped."""


@dataclass(frozen=True)
class Deploy:
    """Pushes a model of its own and deploys one replica. Over when it is ready, or when it failed if it must."""

    model: str
    source: str
    fails: str | None = None
    """Words that the reason must hold which users are shown; None: it must not fail."""
    ballast_bytes: int = 1024
    """Size of a file of random bytes that goes with it, so that no node has it already."""
    wait: bool = True


@dataclass(frozen=True)
class Ready:
    """Holds that all replicas of a model answer within a time."""

    model: str
    within_s: float


@dataclass(frozen=True)
class Undeploy:
    """Removes a deployment."""

    model: str


Act = Send | Start | Recover | Link | Clock | Arm | Hit | Deploy | Ready | Undeploy


def kill(*targets: str) -> Send:
    """kill -9."""
    return Send(signal.SIGKILL, targets)


def terminate(*targets: str) -> Send:
    """Asks processes to go; the step is over when they are gone."""
    return Send(signal.SIGTERM, targets)


def hand_over(*targets: str) -> Send:
    """Asks agents to leave their Tritons to their successors; over when they are gone."""
    return Send(signal.SIGHUP, targets)


def stop(*targets: str) -> Send:
    """Stops processes in the middle of what they do."""
    return Send(signal.SIGSTOP, targets)


def go_on(*targets: str) -> Send:
    """Lets stopped processes go on."""
    return Send(signal.SIGCONT, targets)


def start(*targets: str) -> Start:
    """Starts processes again."""
    return Start(targets)


def link(client: str, server: str, fault: Fault) -> Link:
    """A fault on the links between two."""
    return Link((client,), (server,), fault)


def arm(target: str, text: str) -> Arm:
    """Arms failpoints."""
    return Arm((target,), text)
