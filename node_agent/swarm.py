"""Fetches a large blob in chunks, from other agents and from coordinators, several at a time.

A coordinator says where each chunk is to be had (LocateChunks), so that each leaves the coordinators about once; while
none answers, agents that gave something before are asked.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog

from aimesh.artifacts.v1 import artifacts_pb2
from aimesh.registry.v1 import registry_pb2
from meshkit import chunks
from meshkit.backoff import Backoff
from meshkit.errors import AimeshError, DataLossError, NotFoundError, UnavailableError
from meshkit.threads import uninterrupted
from node_agent.links import Links
from node_agent.partial import Partial
from node_agent.wants import LIAR_S, SILENT_S, Wants

log = structlog.get_logger()

_ROUNDS = 4
"""Rounds through all coordinators without a chunk before a fetch fails."""
_TELL_S = 2.0
"""How often a coordinator hears of a fetch at least: one that is not heard of is taken for ended."""
_TELL_ALL_S = 10.0
"""How often it is told all that is here, in case it was started anew."""
_WAIT_S = 0.2
"""Before asking again for what is on its way to other agents."""
_DEAF_S = 1.0
"""Before coordinators that did not answer are asked again where chunks are."""


@dataclass(frozen=True)
class Site:
    """Who fetches, and how."""

    node_id: str
    coordinators: Callable[[], Sequence[str]]
    """Addresses (host:port), the nearest first."""
    parallel: int
    """Chunks at a time."""


@dataclass(frozen=True)
class _Outcome:
    """How fetching one chunk ended."""

    chunk: int
    address: str
    """Of the agent that was asked; empty for coordinators."""
    guessed: bool
    """Whether nobody had said that it is there."""
    error: AimeshError | OSError | None = None


class Swarm:
    """One blob's fetch. `run` returns when every chunk is here and verified."""

    def __init__(
        self,
        site: Site,
        links: Links,
        file: registry_pb2.ModelFile,
        partial: Partial,
        peers: set[str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`peers` are agents that had some of it in an earlier try; those that become known are added."""
        self._site = site
        self._links = links
        self._file = file
        self._partial = partial
        self._clock = clock
        self._wants = Wants(partial.missing(), clock, random.Random(), peers)  # noqa: S311  # no secret
        self._tracker = Tracking(site, links, file, partial, clock)
        self._backoff = Backoff(first_s=0.2, most_s=2.0)
        self._errors: list[AimeshError | OSError] = []
        """Of coordinators, since the last chunk."""

    async def run(self, progress: Callable[[int], None]) -> None:
        """Fetches what is missing. `progress` is called with the bytes that are here.

        Raises OSError when this node's disk fails, else what the coordinators failed with when no chunk came in four
        rounds.
        """
        self._wants.restart(self._partial.missing())
        progress(self._partial.held_bytes())
        tasks: set[asyncio.Task[_Outcome]] = set()
        try:
            while self._wants.left:
                free = self._site.parallel - len(tasks)
                chosen, guessed = await self._choose(free, idle=not tasks)
                for chunk, address in chosen:
                    self._wants.start(chunk, address)
                    tasks.add(asyncio.create_task(self._bring(chunk, address, guessed=guessed)))
                if len(self._errors) >= self._site.parallel or (self._errors and not tasks):
                    await self._pause()
                if not tasks:
                    await asyncio.sleep(random.uniform(0.5, 1.0) * _WAIT_S)  # noqa: S311  # spread, not secret
                    continue
                patience_s = _TELL_S if len(tasks) == self._site.parallel else _WAIT_S
                done, tasks = await asyncio.wait(tasks, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._take(task.result(), progress)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        await self._tell_end()

    async def _choose(self, free: int, *, idle: bool) -> tuple[list[tuple[int, str]], bool]:
        """Which chunks to fetch next, from where, and whether that is a guess; tells what came meanwhile."""
        try:
            found = await self._tracker.locate(self._wants.next() if free else [], free, self._wants.avoided())
        except AimeshError as error:
            guessed = self._wants.guess(free) if free else []
            if idle and not guessed:
                self._errors.append(error)
            return guessed, True
        self._wants.know(self._tracker.others)
        return found, False

    async def _pause(self) -> None:
        """Waits before another round. Raises the last error when there were enough of them."""
        if self._backoff.failures + 1 >= _ROUNDS:
            raise self._errors[-1]
        await asyncio.sleep(self._backoff.next_delay())
        self._errors.clear()
        self._wants.guess_anew()

    async def _tell_end(self) -> None:
        """Says that all of it is here: others may come for it before the node's report says so."""
        try:
            await self._tracker.locate([], 0, self._wants.avoided())
        except AimeshError as error:
            log.info("fetch.end_not_told", digest=self._file.digest, reason=error.message)

    async def _bring(self, chunk: int, address: str, *, guessed: bool) -> _Outcome:
        try:
            if address:
                await self._from_peer(chunk, address)
            else:
                await self._from_coordinators(chunk)
        except (AimeshError, OSError) as error:
            return _Outcome(chunk, address, guessed, error)
        return _Outcome(chunk, address, guessed)

    def _take(self, outcome: _Outcome, progress: Callable[[int], None]) -> None:
        error = outcome.error
        if error is None:
            self._wants.came(outcome.chunk)
            self._tracker.untold.add(outcome.chunk)
            self._backoff.reset()
            self._errors.clear()
            progress(self._partial.held_bytes())
            return
        self._wants.failed(outcome.chunk)
        if isinstance(error, OSError):  # this node's own disk
            raise error
        log.info(
            "fetch.chunk_failed",
            digest=self._file.digest,
            chunk=outcome.chunk,
            source=outcome.address or "coordinators",
            reason=error.message,
        )
        if not outcome.address:
            self._errors.append(error)
        elif isinstance(error, DataLossError):
            self._wants.avoid(outcome.address, LIAR_S)
        elif not (isinstance(error, NotFoundError) and outcome.guessed):
            self._wants.avoid(outcome.address, SILENT_S)

    async def _from_peer(self, chunk: int, address: str) -> None:
        data = await self._links.read_chunk(address, self._request(chunk), peer=True)
        await uninterrupted(self._partial.write, chunk, data)

    async def _from_coordinators(self, chunk: int) -> None:
        """From the first that gives it: from its own disk, so that what is damaged there can be told to the right one;
        then over another one's, for who reaches only some of them."""
        errors: list[AimeshError] = []
        for held_here in (True, False):
            for address in self._site.coordinators():
                try:
                    data = await self._links.read_chunk(address, self._request(chunk, held_here=held_here))
                    await uninterrupted(self._partial.write, chunk, data)
                except AimeshError as error:
                    errors.append(error)
                    if isinstance(error, DataLossError):
                        await complain(self._links, address, self._file.digest, self._site.node_id)
                else:
                    return
        worst = [error for error in errors if not isinstance(error, NotFoundError)]
        raise (worst or errors or [UnavailableError("this agent knows no coordinator")])[-1]

    def _request(self, chunk: int, *, held_here: bool = False) -> artifacts_pb2.DownloadBlobRequest:
        offset, length = chunks.span(chunk, self._file.size)
        return artifacts_pb2.DownloadBlobRequest(
            digest=self._file.digest, offset=offset, length=length, held_here=held_here
        )


class Tracking:
    """Asks the coordinator that keeps count of this blob: the same one for all agents while it answers."""

    def __init__(
        self, site: Site, links: Links, file: registry_pb2.ModelFile, partial: Partial, clock: Callable[[], float]
    ) -> None:
        self._site = site
        self._links = links
        self._file = file
        self._partial = partial
        self._clock = clock
        self._told_at, self._told = float("-inf"), ""
        self._deaf_until = float("-inf")
        self.untold: set[int] = set()
        """Chunks that came since the last answer."""
        self.others: list[str] = []
        """Agents that have some of it, by the last answer."""

    @property
    def deaf(self) -> bool:
        """Whether no coordinator answered just now."""
        return self._clock() < self._deaf_until

    async def locate(self, wanted: Sequence[int], most: int, avoid: Sequence[str]) -> list[tuple[int, str]]:
        """(chunk, address) for some of what is wanted. Raises what the last coordinator failed with."""
        if self.deaf:
            raise UnavailableError("no coordinator says where chunks are")
        failed: AimeshError = UnavailableError("this agent knows no coordinator")
        for address in in_turn(self._site.coordinators(), self._file.digest):
            request = self._request(address, wanted, most, avoid)
            try:
                answer = await self._links.locate(address, request)
            except AimeshError as error:
                failed = error
                continue
            self.untold.difference_update(request.held)
            if len(request.held) == len(self._partial):
                self._told_at, self._told = self._clock(), address
            self.others = list(answer.others)
            found = {source.chunk: source.address for source in answer.sources if source.chunk in set(wanted)}
            return list(found.items())[:most]
        self._deaf_until = self._clock() + _DEAF_S
        raise failed

    def _request(
        self, address: str, wanted: Sequence[int], most: int, avoid: Sequence[str]
    ) -> artifacts_pb2.LocateChunksRequest:
        new = address != self._told or self._clock() - self._told_at >= _TELL_ALL_S
        return artifacts_pb2.LocateChunksRequest(
            digest=self._file.digest,
            node_id=self._site.node_id,
            wanted=wanted,
            held=sorted(self._partial.held() if new else self.untold),
            avoid=avoid,
            total=chunks.count(self._file.size),
            most=most,
        )


def in_turn(coordinators: Sequence[str], digest: str) -> list[str]:
    """The coordinators in the order in which all agents ask them about a blob."""
    ring = sorted(coordinators)
    turn = int.from_bytes(hashlib.sha256(digest.encode()).digest()[:4]) % len(ring) if ring else 0
    return ring[turn:] + ring[:turn]


async def complain(links: Links, address: str, digest: str, node_id: str) -> None:
    """Tells a coordinator that its copy of a blob seems to be damaged: it looks, and repairs it."""
    log.warning("fetch.refused", coordinator=address, digest=digest, reason="the bytes are not what the digest says")
    try:
        await links.locate(address, artifacts_pb2.LocateChunksRequest(digest=digest, node_id=node_id, avoid=[address]))
    except AimeshError as error:
        log.info("fetch.complaint_not_taken", coordinator=address, digest=digest, reason=error.message)
