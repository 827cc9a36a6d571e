"""One model name on this node: the version wanted, what has become of it, and what Triton serves under the name."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from meshkit.backoff import Backoff
from node_agent.gpuchoice import GpuShare
from node_agent.plan import FAILED, FETCHING, LOADING, READY, UNLOADING, Held, ModelState

_STABLE_S = 60.0
"""A model that was ready this long starts with short pauses again when it fails."""
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Loaded:
    """What Triton serves under a name, and the generation of Triton that does."""

    version: str
    key: str
    generation: int
    gpu: GpuShare | None = None


@dataclass
class ModelWork:
    """Changed only by the reconciler and the task that it runs for this name. Times are the clock's seconds."""

    version: registry_pb2.ModelVersion
    state: ModelState = FETCHING
    message: str = ""
    failure: str = ""
    """Why the last try failed; stays to be seen until one succeeds."""
    bytes_done: int = 0
    loaded: Loaded | None = None
    task: asyncio.Task[None] | None = None
    cancelled: bool = False
    pinned: bool = False
    gpu: GpuShare | None = None
    """What the version takes of which GPU; None on the CPU."""
    ready_at: float | None = None
    retry_at: float = 0.0
    tritons_lost: int = 0
    """How often in a row Triton died while it loaded this version."""
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=2.0, most_s=_LONGEST_PAUSE_S))

    def renew(self, version: registry_pb2.ModelVersion, state: ModelState) -> None:
        """Turns to this version; another one than before starts with a clean slate."""
        if key_of(version) != key_of(self.version):
            self.backoff.reset()
            self.failure, self.tritons_lost = "", 0
        self.version, self.state = version, state
        self.message, self.bytes_done, self.ready_at, self.gpu = "", 0, None, None

    def now_serving(self, generation: int) -> None:
        """Triton has loaded the version."""
        self.loaded = Loaded(self.version.version, key_of(self.version), generation, self.gpu)

    def succeed(self, now: float) -> None:
        """It answers requests."""
        self.state, self.message, self.failure, self.ready_at = READY, "", "", now
        self.tritons_lost = 0

    def fail(self, reason: str, now: float, *, triton_lost: bool = False) -> None:
        """Records why the last try failed and when the next one is due.

        A version that took Triton with it twice waits as long as can be: all other models of the node went down too.
        Twice, because of several that load together one alone is to blame; they try again at different moments.
        """
        if self.ready_at is not None and now - self.ready_at >= _STABLE_S:
            self.backoff.reset()
        # Half of the pause is certain: a model that fails at once must not keep the machine busy.
        certain_s = min(_LONGEST_PAUSE_S, 0.5 * 2.0 ** min(self.backoff.failures, 32)) / 2
        self.tritons_lost = self.tritons_lost + 1 if triton_lost else 0
        if self.tritons_lost > 1:
            certain_s = _LONGEST_PAUSE_S
        self.retry_at = now + certain_s + self.backoff.next_delay() / 2
        self.message, self.failure, self.ready_at = reason, reason, None
        if self.state != UNLOADING:
            self.state = FAILED

    def cease(self) -> None:
        """Its task has come to its end."""
        self.task, self.cancelled, self.pinned = None, False, False

    def gpu_shares(self, generation: int) -> list[GpuShare]:
        """What this name takes of the GPUs, `generation` being Triton's: also the version that is being replaced."""
        shares = [self.gpu]
        loaded = self.loaded if self.loaded is not None and self.loaded.generation == generation else None
        if loaded is not None and (self.gpu is None or loaded.key != key_of(self.version)):
            shares.append(loaded.gpu)
        return [share for share in shares if share is not None]

    def held(self) -> Held:
        """As the deciding code sees it."""
        current = self.loaded is not None and self.loaded.key == key_of(self.version)
        return Held(
            key=key_of(self.version),
            state=self.state,
            busy=self.task is not None,
            cancelled=self.cancelled,
            pinned=self.pinned,
            generation=self.loaded.generation if self.loaded is not None and current else 0,
            retry_at=self.retry_at,
        )

    def statuses(self, generation: int) -> list[membership_pb2.ModelStatus]:
        """As told to the coordinator, `generation` being that of the Triton that is ready, 0 while none is.

        Two entries while a version replaces another that still serves.
        """
        serving = self.loaded if self.loaded is not None and self.loaded.generation == generation else None
        state, message = self.state, self.message
        if state == READY and serving is None:
            state, message = LOADING, "Triton has to load it again"
        if state in (FETCHING, LOADING) and self.failure and not message:
            message = f"trying again after: {self.failure}"
        own = membership_pb2.ModelStatus(
            name=self.version.name, version=self.version.version, state=state, message=message
        )
        if state == FETCHING:
            own.bytes_done = self.bytes_done
            own.bytes_total = sum(file.size for file in self.version.files)
        if serving is None or serving.version == self.version.version or state == UNLOADING:
            return [own]
        return [membership_pb2.ModelStatus(name=own.name, version=serving.version, state=READY), own]


def key_of(version: registry_pb2.ModelVersion) -> str:
    """Tells versions apart also when one was removed from the registry and recorded again with other content."""
    return f"{version.version}@{version.digest}"
