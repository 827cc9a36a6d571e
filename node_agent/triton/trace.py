"""How long each request took, from Triton's own traces: which of them it writes, and what they say.

Triton writes a trace of every how many-th request of the models that are traced into files of
<data_dir>/triton/traces, as JSON. They are read and removed each second, and what they say is kept as sums.
"""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from meshkit.errors import AimeshError
from node_agent.triton.launch import trace_file
from node_agent.triton.server import InferenceServer

log = structlog.get_logger()

BUCKETS_AN_OCTAVE = 8
"""Bucket i counts times from 2^(i/8) to 2^((i+1)/8) microseconds, as in membership.proto."""
MOST_TRACES = 20_000
"""Triton writes so many (about 1 KB each) of a model, and then no more until it is told to go on: with an agent that
died, the files stay small."""
MOST_BYTES = 64 * 1024 * 1024
"""Read at once; files beyond are removed unread."""
_FILES_A_SECOND = 10
"""Triton puts as many traces into a file as make about so many files: more cost time, fewer are late."""
_ABANDONED_S = 10.0
"""A file that is not whole by then never will be."""
_ENTRY = re.compile(
    r'\{"id":(\d+),(?:"model_name":"([^"]*)"'
    r'|"timestamps":\[\{"name":"(REQUEST_START|REQUEST_END|GRPC_SEND_START)","ns":(\d+))'
)


@dataclass(frozen=True)
class Trace:
    """One request."""

    model: str
    started_ns: int
    """When it came to Triton, by the machine's monotonic clock."""
    took_ns: int
    """Until it was answered in full, its time in the queue included."""
    responses: int
    """Responses sent over gRPC, the empty last one of a stream not counted."""


@dataclass(frozen=True)
class Setting:
    """What of a model's requests Triton is told to trace."""

    every: int = 0
    """Every so many-th; 0 for none."""
    a_file: int = 1
    """Traces in a file."""

    def near(self, other: Setting) -> bool:
        """Whether the other does as well."""
        close = max(self.a_file, other.a_file) <= 2 * min(self.a_file, other.a_file)
        return self.every == other.every and (close or not self.every)


@dataclass
class Tally:
    """What was seen of one version of a model since it was first traced."""

    version: str
    since_ns: int
    """Requests from before this were another version's."""
    latency: Counter[int] = field(default_factory=Counter)
    responses: int = 0

    def add(self, trace: Trace, every: int) -> None:
        """Counts a request; its responses for those of the requests that are not traced too."""
        if trace.started_ns >= self.since_ns:
            self.latency[bucket_of(trace.took_ns)] += 1
            self.responses += trace.responses * max(1, every)


def bucket_of(took_ns: int) -> int:
    """The latency bucket of a time; what is shorter than a microsecond is in the first."""
    return max(0, math.floor(BUCKETS_AN_OCTAVE * math.log2(max(took_ns, 1) / 1000)))


def parse(text: str) -> list[Trace]:
    """The requests in one of Triton's files that have both their ends."""
    models: dict[str, str] = {}
    times: defaultdict[str, dict[str, int]] = defaultdict(dict)
    responses: Counter[str] = Counter()
    for key, model, name, ns in _ENTRY.findall(text):
        if not name:
            models[key] = model
        elif name == "GRPC_SEND_START":
            responses[key] += 1
        else:
            times[key][name] = int(ns)
    return [
        Trace(models[key], at["REQUEST_START"], at["REQUEST_END"] - at["REQUEST_START"], responses[key])
        for key, at in times.items()
        if key in models and len(at) == 2
    ]


def whole(text: str) -> bool:
    """Whether Triton has written all of a file: within one, this end is always followed by a comma."""
    return text.startswith("[") and text.rstrip().endswith("}]}]")


def take(directory: Path, now: float) -> list[str]:
    """Texts of the whole files, which are removed. One that is being written stays, unless it is old. Blocks.

    `now` is the wall clock's time in seconds.
    """
    found: list[str] = []
    size = 0
    for path in directory.iterdir():
        with suppress(FileNotFoundError):
            status = path.stat()
            size += status.st_size
            text = path.read_text(errors="replace") if size <= MOST_BYTES else ""
            if whole(text):
                found.append(text)
            elif text and now - status.st_mtime < _ABANDONED_S:
                continue
            path.unlink()
    return found


class Tracer:
    """Has Triton trace what it is asked to, and adds up what the traces say."""

    def __init__(self, triton: InferenceServer, clock: Callable[[], float] = time.monotonic) -> None:
        self._triton = triton
        self._clock = clock
        self._directory = trace_file(triton.data_dir).parent
        self._directory.mkdir(parents=True, exist_ok=True)
        self._wanted: Mapping[str, int] = {}
        self._told: dict[str, Setting] = {}
        self._generation = 0
        self._read: Counter[str] = Counter()
        """Traces since Triton was told how many it may write."""
        self._tallies: dict[str, Tally] = {}
        self._requests: dict[str, tuple[float, int]] = {}
        self._failed = ""

    def want(self, traced: Mapping[str, int]) -> None:
        """Trace these models from now on, every so many-th request by name, and no others."""
        self._wanted = {name: every for name, every in traced.items() if every > 0}

    def traces(self, name: str) -> bool:
        """Whether Triton was told to trace a model's requests."""
        return self._told.get(name, Setting()).every > 0

    async def sample(self, serving: Mapping[str, str], requests: Mapping[str, int]) -> Mapping[str, Tally]:
        """Reads what there is and tells Triton what to trace. What was seen of each traced model, by name.

        `serving` has the version by name, `requests` how many each has answered since it was loaded. Never raises
        AimeshError: latencies are missing then, and a log line says why.
        """
        for text in await asyncio.to_thread(take, self._directory, time.time()):
            self._add(parse(text))
        self._follow(serving)
        if self._triton.settings.triton.mode == "managed":
            for name in serving:
                await self._tell(name, self._setting(name, requests.get(name, 0)))
        return self._tallies

    def _follow(self, serving: Mapping[str, str]) -> None:
        """One tally for each traced version that is served."""
        held = {name: version for name, version in serving.items() if name in self._wanted}
        self._tallies = {name: t for name, t in self._tallies.items() if held.get(name) == t.version}
        for name, version in held.items():
            if name not in self._tallies:
                self._tallies[name] = Tally(version, time.monotonic_ns())
        if self._generation != self._triton.status.generation:
            self._generation = self._triton.status.generation
            self._told.clear()

    def _add(self, traces: Iterable[Trace]) -> None:
        for trace in traces:
            self._read[trace.model] += 1
            if (tally := self._tallies.get(trace.model)) is not None:
                tally.add(trace, self._wanted.get(trace.model, 1))

    def _setting(self, name: str, requests: int) -> Setting:
        """By the number of requests since the last sample."""
        now = self._clock()
        at, before = self._requests.get(name, (now - 1.0, requests))
        self._requests[name] = now, requests
        if name not in self._wanted:
            return Setting()
        every = self._wanted[name]
        rate = max(0, requests - before) / max(0.1, now - at) / every
        return Setting(every, max(1, round(rate / _FILES_A_SECOND)))

    async def _tell(self, name: str, setting: Setting) -> None:
        """Unless Triton knows it. Being told makes it write out what it has."""
        told = self._told.get(name)
        if told is not None and told.near(setting) and self._read[name] < MOST_TRACES // 2:
            return
        try:
            await self._triton.client.trace(name, setting.every, setting.a_file, MOST_TRACES)
        except AimeshError as error:
            if error.message != self._failed:
                self._failed = error.message
                log.warning("trace.not_set", model=name, reason=error.message, effect="its latencies are not known")
            return
        self._told[name] = setting
        self._read[name] = 0
