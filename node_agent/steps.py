"""The steps from a version's digests to a model that answers, and back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection

import structlog

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import AimeshError, DataLossError, InvalidInputError, UnavailableError
from meshkit.failpoints import failpoint
from meshkit.process import ProcessId
from meshkit.threads import uninterrupted
from node_agent.adoption import AdoptedModel, find_models, find_started, startable
from node_agent.cgroup import read_oom_kills
from node_agent.fetch import Fetcher
from node_agent.measure import Footprint, Measured, Meter
from node_agent.migration import Migrations
from node_agent.modelconfig import Extras, scheduling_note
from node_agent.plan import LOADING
from node_agent.quiet import until_quiet
from node_agent.reasons import plain_reason
from node_agent.repository import Repository
from node_agent.selfrequest import test_model
from node_agent.served import Served, ServedRecord, environment
from node_agent.settings import AgentSettings
from node_agent.signature import check_loaded
from node_agent.triton.server import InferenceServer
from node_agent.triton.stubs import StubWatch
from node_agent.trust import TrustRecord
from node_agent.work import LoadedAs, ModelWork, content_of

log = structlog.get_logger()

_PROGRESS_S = 1.0
_UNLOAD_POLL_S = 0.05
_STUB_EXIT_S = 10.0
"""A model's processes have exited this long after Triton calls it unloaded, or never do."""


class TritonLostError(UnavailableError):
    """Triton died while it loaded a model."""


class Steps:
    """Carries out what was decided, for one name at a time each. Errors are raised, the work is changed as it goes."""

    def __init__(
        self,
        settings: AgentSettings,
        triton: InferenceServer,
        fetcher: Fetcher,
        repository: Repository,
        served: ServedRecord,
        trust: TrustRecord,
        meter: Meter,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._triton = triton
        self._fetcher = fetcher
        self._repository = repository
        self._served = served
        self._meter = meter
        self._migrations = Migrations(settings.data_dir)
        self._clock = clock
        self._left_behind = ""
        """What the last model that was unloaded did not give back; told with the next that is loaded."""
        self.trust = trust
        """Which versions may be loaded."""
        self._told: dict[str, str] = {}
        """By name, what Triton said in full of the last load that failed: it is logged once."""
        self.stubs = StubWatch(repository.root, lambda name: self.on_stub_death(name))
        self.on_change: Callable[[], None] = lambda: None
        """Called when a work has changed."""
        self.on_stub_death: Callable[[str], None] = lambda _: None
        """Called with a model's name when one of its processes died."""

    async def find_models(self) -> list[AdoptedModel]:
        """The models of an adopted Triton that are to go on. Raises AimeshError when it does not answer."""
        triton = self._triton
        return await find_models(triton.client, triton.status.pid, self._served, self._repository, self.stubs)

    async def startable(self) -> list[str]:
        """The models that a new Triton is to be started with."""
        return await uninterrupted(startable, self._served, self._repository, self._fetcher.verify, self._allows)

    async def find_started(self, names: Collection[str]) -> list[AdoptedModel]:
        """What came up of the models that Triton was started with. Raises AimeshError when it does not answer."""
        triton = self._triton
        pid = triton.status.pid
        return await find_started(names, triton.client, pid, self._served, self._repository, self.stubs)

    def clear(self) -> list[str]:
        """Nothing is loaded: forgets and removes all but what Triton can be started with, which is returned.

        Blocks on the disk.
        """
        # Verified just before it starts.
        kept = startable(self._served, self._repository, lambda _: True, self._allows)
        self._served.keep(kept)
        self._repository.clear(kept)
        return kept

    async def serve(self, work: ModelWork, keep: Collection[str]) -> None:
        """Fetches what is missing, verifies, lays out, loads and tests. `keep` are digests that must not be evicted."""
        self.trust.check(work.version)
        await self._fetch(work, keep)
        work.state, work.message = LOADING, "" if self._triton.status.ready else "Triton is not ready"
        self.on_change()
        await self._triton.wait_ready()  # first: one that starts may be reading the version before
        manifest = await self._lay_out(work)
        await self._migrate(work, manifest)
        await self._meter.settled(self._settings.drain_s)
        generation = await self._triton.wait_ready()
        self.trust.check(work.version)  # again: it may have taken long to come so far
        work.pinned, work.message = True, ""
        stubs, measured = await self._load_and_test(work, generation)
        digests = frozenset(file.digest for file in work.version.files)
        signatures = tuple((each.key_id, each.signature.hex()) for each in work.version.signatures)
        served = Served(work.key, work.gpu, stubs, digests, environment(), manifest, signatures)
        await uninterrupted(self._served.put, work.version.name, served)
        work.succeed(self._clock())
        taken = {"memory": measured.memory_bytes, "gpu_memory": measured.gpu_memory_bytes, "load_s": measured.load_s}
        log.info("model.ready", model=work.version.name, version=work.version.version, **taken)

    async def unload(self, work: ModelWork) -> None:
        """Unloads once clients ask no more and what is in flight is done (at most drain_s), then removes the files."""
        name = work.version.name
        self.stubs.forget(name)
        await uninterrupted(self._served.forget, name)
        async with self._meter.freeing():
            try:
                if self._triton.status.ready:
                    await self._take_away(work)
            except UnavailableError as error:
                log.info("model.unload_cut_short", model=name, reason=str(error))  # a Triton that died serves nothing
        await uninterrupted(self._repository.remove, name)
        log.info("model.unloaded", model=name, version=work.version.version)

    async def _take_away(self, work: ModelWork) -> None:
        """Out of Triton, and what it took back to the machine."""
        name, client, pid = work.version.name, self._triton.client, self._triton.status.pid
        if work.loaded is not None:
            await until_quiet(client, self._settings.drain_s, name)
        took = work.loaded.measured if work.loaded is not None else Measured()
        gpu = work.gpu.index if work.gpu is not None else None
        before = await asyncio.to_thread(self._meter.footprint, [pid], gpu) if pid else Footprint()
        stubs = await asyncio.to_thread(self.stubs.find, pid, name)
        await client.unload(name)
        await self._until_unloaded(name)
        await asyncio.to_thread(self.stubs.end, stubs, _STUB_EXIT_S)
        missing = await self._meter.returned(pid, gpu, before, took, self._settings.drain_s)
        if missing:
            self._left_behind = f"{name}, which ran here before, has not given back {missing}"
            log.warning("model.memory_kept", model=name, version=work.version.version, missing=missing)

    async def _fetch(self, work: ModelWork, keep: Collection[str]) -> None:
        last_told = self._clock()
        finished = 0

        def progress(received: int) -> None:
            nonlocal last_told
            work.bytes_done = finished + received
            if self._clock() - last_told >= _PROGRESS_S:
                last_told = self._clock()
                self.on_change()

        for file in work.version.files:
            await self._fetcher.fetch(file, keep, progress)
            finished += file.size

    async def _lay_out(self, work: ModelWork) -> dict[str, str]:
        """What Triton is to load, verified; gives the digest of each file."""
        runtime = work.version.runtime
        template = await uninterrupted(self._repository.template_digest, runtime)
        extras = Extras(LoadedAs(work.key, runtime, template).text, work.scheduling)
        gpu = work.gpu.index if work.gpu is not None else None
        await uninterrupted(self._repository.lay_out, work.version, gpu, extras)
        manifest = await uninterrupted(self._repository.manifest, work.version)
        await self._check_files(work, manifest, frozenset(file.digest for file in work.version.files))
        return manifest

    async def _check_files(self, work: ModelWork, manifest: dict[str, str], verified: frozenset[str]) -> None:
        """Raises DataLossError when a file is not what it should be. The next try fetches and lays out anew."""
        damaged = await uninterrupted(self._repository.damaged, work.version.name, manifest, verified)
        if damaged:
            raise DataLossError(
                f"{', '.join(damaged)} of {work.version.name}:{work.version.version} changed after it was laid out",
                hint="it is repaired and tried again by itself; when it happens again, look at the disk",
                reason="FILES_CHANGED",
            )

    async def _migrate(self, work: ModelWork, manifest: dict[str, str]) -> None:
        version = work.version
        if not version.migration.path:
            return
        if version.migration.path not in {file.path for file in version.files}:
            raise InvalidInputError(
                f"the migration {version.migration.path!r} is no file of {version.name}:{version.version}",
                hint="push it with a file of the model: --migrate PATH",
            )
        served = work.loaded.version if work.loaded is not None else ""
        previous = served if served not in ("", version.version) else version.replaces
        work.message = "its migration runs"
        self.on_change()
        folder = self._repository.folder(version)
        await self._migrations.run(version, folder / version.migration.path, folder, previous)
        await self._check_files(work, manifest, frozenset())  # a program of the agent's own user may write anything

    async def _load_and_test(self, work: ModelWork, generation: int) -> tuple[frozenset[ProcessId], Measured]:
        """Loads what is laid out and tests it; gives its processes, and what it took."""
        gpu = work.gpu.index if work.gpu is not None else None
        async with self._meter.loading(self._triton.status.pid, gpu) as load:
            stubs = await self._load(work.version.name)
            load.loaded()
            failpoint("model.loaded")
            work.now_serving(generation)
            await self._test(work)
            measured = await load.measure(stubs)
        if work.loaded is not None:
            work.loaded.measured = measured
        return stubs, measured

    async def _load(self, name: str) -> frozenset[ProcessId]:
        """Loads what is laid out; gives its processes."""
        pid, oom_kills = self._triton.status.pid, read_oom_kills()
        replaced = await asyncio.to_thread(self.stubs.find, pid, name) - self.stubs.condemned
        self.stubs.forget(name)
        try:
            await self._triton.client.load(name, self._settings.triton.load_timeout_s)
        except UnavailableError as error:
            await uninterrupted(self._served.forget, name)  # no Triton is to be started with what may have killed one
            raise TritonLostError(f"Triton went away while it loaded {name}: {error.message}") from None
        except AimeshError as error:
            self.stubs.watch(name, replaced)  # the version before goes on serving
            self._log_in_full(name, error)
            raise type(error)(plain_reason(error.message, read_oom_kills() - oom_kills)) from None
        stubs = await asyncio.to_thread(self.stubs.find, pid, name) - replaced - self.stubs.condemned
        self.stubs.watch(name, stubs)
        self.condemn(replaced)
        return stubs

    def condemn(self, stubs: Collection[ProcessId]) -> None:
        """These serve no version any more. Triton ends them after their last request, or never (see StubWatch.end)."""
        self.stubs.condemn(stubs, self._settings.drain_s + _STUB_EXIT_S)

    def _log_in_full(self, name: str, error: AimeshError) -> None:
        """Once, and not again at each retry."""
        if self._told.get(name) != error.message:
            self._told[name] = error.message
            log.warning("model.load_failed", model=name, said=error.message)

    async def _test(self, work: ModelWork) -> None:
        client, name = self._triton.client, work.version.name
        try:
            answers = await test_model(client, work.version, self._settings.triton.test_timeout_s)
            config = await client.config(name)
            check_loaded(work.version, config, answers)
            notes = [scheduling_note(config) if work.scheduling is not None else "", self._left_behind]
            work.note, self._left_behind = "; ".join(filter(None, notes)), ""
        except AimeshError:
            work.loaded = None
            self.stubs.forget(name)
            await uninterrupted(self._served.forget, name)
            await client.unload(name)  # what fails its own test must not answer anybody
            raise

    def _allows(self, served: Served) -> bool:
        digest = content_of(served.key).partition("@")[2]
        signatures = [
            registry_pb2.VersionSignature(key_id=key_id, signature=bytes.fromhex(text))
            for key_id, text in served.signatures
        ]
        return self.trust.allows(digest, signatures)

    async def _until_unloaded(self, name: str) -> None:
        deadline = self._clock() + self._settings.drain_s
        while self._clock() < deadline:
            entry = (await self._triton.client.index()).get(name)
            if entry is None or entry.state in ("", "UNAVAILABLE"):
                return
            await asyncio.sleep(_UNLOAD_POLL_S)
