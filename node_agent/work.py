"""One model name on this node: the version wanted, what has become of it, and what Triton serves under the name."""

from __future__ import annotations

import asyncio
import hashlib
import re
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from meshkit.backoff import Backoff
from node_agent.gpuchoice import GpuShare
from node_agent.measure import Measured
from node_agent.plan import FAILED, FETCHING, LOADING, READY, UNLOADING, Held, ModelState

_STABLE_S = 60.0
"""A model that was ready this long starts with short pauses again when it fails."""
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class Wanted:
    """A version, and how its requests are queued; None for Triton's default."""

    version: registry_pb2.ModelVersion
    scheduling: routing_pb2.Scheduling | None = None

    @property
    def key(self) -> str:
        """Tells apart what has to be loaded anew."""
        return key_of(self.version, self.scheduling)


@dataclass(frozen=True)
class LoadedAs:
    """What a model was loaded as; `text` stands in its configuration, where Triton gives it back."""

    key: str
    runtime: str
    template: str
    """Digest of the runtime's template; empty for a user's own model."""

    @property
    def text(self) -> str:
        """All of it."""
        return f"{self.key}|{self.runtime}:{self.template}"

    @property
    def version(self) -> str:
        """The model's version."""
        return content_of(self.key).partition("@")[0]

    @property
    def digest(self) -> str:
        """The version's digest."""
        return content_of(self.key).partition("@")[2]

    @property
    def scheduled(self) -> bool:
        """Whether its requests were to be queued in another way than Triton's default."""
        return "#" in self.key

    @classmethod
    def parse(cls, text: str) -> LoadedAs | None:
        """Back from `text`; None when it is none."""
        key, bar, rest = text.rpartition("|")
        runtime, colon, template = rest.partition(":")
        return cls(key, runtime, template) if bar and colon and "@" in key else None


@dataclass(eq=False)
class Loaded:
    """What Triton serves under a name, and the generation of Triton that does."""

    version: str
    key: str
    generation: int
    gpu: GpuShare | None = None
    proven: bool = False
    """This content has passed its test."""
    adopted: bool = False
    """An earlier agent had it loaded."""
    measured: Measured = field(default_factory=Measured)
    """What it took to load."""


@dataclass
class ModelWork:
    """Changed only by the reconciler and the task that it runs for this name. Times are the clock's seconds."""

    version: registry_pb2.ModelVersion
    state: ModelState = FETCHING
    scheduling: routing_pb2.Scheduling | None = None
    key: str = ""
    """What is wanted; made from the version and its scheduling when it is not given."""
    message: str = ""
    note: str = ""
    """What is to be said of it also while it is ready."""
    failure: str = ""
    """Why the last try failed; stays to be seen until one succeeds."""
    unsigned: bool = False
    """That it was not signed by anybody whose signature counts."""
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

    def __post_init__(self) -> None:
        self.key = self.key or key_of(self.version, self.scheduling)

    def renew(self, wanted: Wanted, state: ModelState) -> None:
        """Turns to this version; another one than before starts with a clean slate."""
        if wanted.key != self.key:
            self.backoff.reset()
            self.failure, self.unsigned, self.tritons_lost = "", False, 0
        self.version, self.scheduling, self.key, self.state = wanted.version, wanted.scheduling, wanted.key, state
        self.message, self.note, self.bytes_done, self.ready_at, self.gpu = "", "", 0, None, None

    def now_serving(self, generation: int) -> None:
        """Triton has loaded the version."""
        before = self._serving(generation)
        proven = before is not None and before.proven and content_of(before.key) == content_of(self.key)
        self.loaded = Loaded(self.version.version, self.key, generation, self.gpu, proven)

    def succeed(self, now: float) -> None:
        """It answers requests."""
        self.state, self.message, self.failure, self.ready_at = READY, "", "", now
        self.unsigned, self.tritons_lost = False, 0
        if self.loaded is not None:
            self.loaded.proven = True

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
        loaded = self._serving(generation)
        if loaded is not None and (self.gpu is None or loaded.key != self.key):
            shares.append(loaded.gpu)
        return [share for share in shares if share is not None]

    def held(self) -> Held:
        """As the deciding code sees it."""
        current = self.loaded is not None and self.loaded.key == self.key
        return Held(
            key=self.key,
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
        serving = self._serving(generation)
        state, message = self.state, self.message
        if state == READY:
            state, message = (READY, self.note) if serving is not None else (LOADING, "Triton has to load it again")
        elif self._serves_on(serving):
            state, message = READY, f"serves as before, and is not yet as assigned: {message or 'it is loaded anew'}"
        if state in (FETCHING, LOADING) and self.failure and not message:
            message = f"trying again after: {self.failure}"
        own = membership_pb2.ModelStatus(
            name=self.version.name, version=self.version.version, state=state, message=message
        )
        if state == FETCHING:
            own.bytes_done = self.bytes_done
            own.bytes_total = sum(file.size for file in self.version.files)
        if serving is not None and serving.key == self.key:
            own.measured_memory_bytes = serving.measured.memory_bytes
            own.measured_gpu_memory_bytes = serving.measured.gpu_memory_bytes
            if serving.measured.load_s:
                own.load_time.FromMilliseconds(round(1000 * serving.measured.load_s))
        if serving is None or serving.version == self.version.version or state == UNLOADING:
            return [own]
        return [membership_pb2.ModelStatus(name=own.name, version=serving.version, state=READY), own]

    def serving(self, generation: int) -> str:
        """The version that Triton answers with, `generation` being its own; empty for none."""
        serving = self._serving(generation)
        return serving.version if serving is not None else ""

    def _serving(self, generation: int) -> Loaded | None:
        return self.loaded if self.loaded is not None and self.loaded.generation == generation else None

    def _serves_on(self, serving: Loaded | None) -> bool:
        """Whether the same content answers while it is loaded with another scheduling or runtime."""
        same = serving is not None and serving.proven and content_of(serving.key) == content_of(self.key)
        return same and self.state != UNLOADING


def key_of(version: registry_pb2.ModelVersion, scheduling: routing_pb2.Scheduling | None = None) -> str:
    """Tells versions apart also when one was removed from the registry and recorded again with other content, and when
    their requests are queued in another way."""
    content = f"{version.version}@{version.digest}"
    if scheduling is None or scheduling == routing_pb2.Scheduling():
        return content
    return f"{content}#{hashlib.sha256(scheduling.SerializeToString(deterministic=True)).hexdigest()[:12]}"


def content_of(key: str) -> str:
    """The part of a key that says which files."""
    return re.split(r"[#|]", key, maxsplit=1)[0]
