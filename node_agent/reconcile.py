"""Brings what Triton serves to what is assigned, and keeps it there.

Level-triggered: each step compares the two (`plan.decide`) and starts what is missing; nothing depends on an event
having been seen, and a step that failed is simply due again later.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any

import structlog

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from meshkit.errors import AimeshError
from node_agent.adoption import AdoptedModel
from node_agent.cgroup import read_oom_kills
from node_agent.gpuchoice import GpuShare, choose_gpu
from node_agent.modelconfig import KEY
from node_agent.plan import FETCHING, LOADING, READY, UNLOADING, Action, decide, next_retry
from node_agent.reasons import OUT_OF_MEMORY
from node_agent.steps import Steps, TritonLostError
from node_agent.store import ModelStore
from node_agent.triton.selftest import NAME as SELFTEST
from node_agent.triton.server import InferenceServer
from node_agent.trust import UNSIGNED
from node_agent.work import Loaded, ModelWork, Wanted, content_of

log = structlog.get_logger()

_AUDIT_S = 2.0
"""How often Triton is asked what it really serves."""
_DEATH_PAUSE_S = 0.2
"""When Triton dies its stubs die too; only a stub that died alone is a model's failure."""


class Reconciler:
    """The models of this node."""

    def __init__(
        self,
        triton: InferenceServer,
        store: ModelStore,
        steps: Steps,
        gpus: Mapping[int, int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`gpus` is the memory in bytes of each GPU of the node, by index."""
        self._triton = triton
        self._store = store
        self._steps = steps
        self._gpus = gpus
        self._clock = clock
        self._wanted: dict[str, Wanted] = {}
        self._revision = 0
        self._told = False
        self._works: dict[str, ModelWork] = {}
        self._oom_kills = read_oom_kills()
        self._group: asyncio.TaskGroup | None = None
        self._wake = asyncio.Event()
        self.on_change: Callable[[], None] = lambda: None
        """Called whenever `report` may have changed."""
        steps.on_change = lambda: self.on_change()
        steps.on_stub_death = self._on_stub_death

    def assign(self, assignments: membership_pb2.Assignments) -> None:
        """Takes what the node must run, whole. What is not listed is unloaded."""
        self._revision, self._told = assignments.revision, True
        if assignments.HasField("trust"):  # a coordinator of before there was trust says nothing about it
            self._steps.trust.set(assignments.trust)
        scheduling = assignments.scheduling
        self._wanted = {version.name: Wanted(version, scheduling.get(version.name)) for version in assignments.models}
        log.info("models.assigned", revision=self._revision, models=sorted(self._wanted))
        self._forgive()
        self._step()
        self.on_change()

    def _forgive(self) -> None:
        """What was refused for want of a signature is tried at once when it has one."""
        for name, wanted in self._wanted.items():
            work = self._works.get(name)
            if work is not None and work.unsigned and self._steps.trust.signed(wanted.version):
                work.retry_at, work.unsigned = 0.0, False

    def adopt(self, models: Iterable[AdoptedModel]) -> None:
        """Goes on with what an adopted Triton serves. It is left as it is until a coordinator says what is wanted."""
        for model in models:
            self._take(model, self._triton.status.generation, adopted=True)
            self._steps.condemn(model.strays)
        self.on_change()

    async def resume(self, names: Collection[str], generation: int) -> None:
        """Goes on with what came up of the models that Triton, in this generation, was started with."""
        try:
            models = await self._steps.find_started(names)
        except AimeshError as error:  # they are loaded anew once a coordinator wants them
            log.warning("models.not_resumed", reason=str(error))
            return
        for model in models:
            self._take(model, generation, adopted=False)

    def _take(self, model: AdoptedModel, generation: int, *, adopted: bool) -> None:
        name, now = model.version.name, self._clock()
        work = self._works.get(name)
        if work is None:
            work = ModelWork(model.version, READY, key=model.key, note=model.note, gpu=model.gpu, ready_at=now)
            self._works[name] = work
        version = model.version.version
        work.loaded = Loaded(version, model.key, generation, model.gpu, proven=True, adopted=adopted)
        self._steps.stubs.forget(name)
        self._steps.stubs.watch(name, model.stubs)

    def serving(self) -> dict[str, str]:
        """The version that Triton answers with, by model; none while it is not ready."""
        generation = self._generation()
        found = {name: work.serving(generation) for name, work in self._works.items()} if generation else {}
        return {name: version for name, version in found.items() if version}

    def wake(self) -> None:
        """Triton has changed: the report is other, and models may have to be loaded again."""
        self._wake.set()
        self.on_change()

    def work(self, name: str) -> ModelWork | None:
        """What is being done with one model; None when there is nothing."""
        return self._works.get(name)

    def report(self) -> membership_pb2.ModelReport:
        """Everything that runs on the node, at this moment."""
        generation = self._generation()
        return membership_pb2.ModelReport(
            triton=self._triton.report(),
            models=[status for _, work in sorted(self._works.items()) for status in work.statuses(generation)],
            blobs=sorted(self._store.held()),
            assignments_revision=self._revision,
        )

    async def run(self) -> None:
        """Until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                group.create_task(self._audit_forever())
                while True:
                    self._wake.clear()
                    self._step()
                    await self._sleep()
        finally:
            self._group = None
            self._steps.stubs.close()

    def _step(self) -> None:
        if self._group is None or not self._told:
            return  # assigned before `run`, which begins with a step; or adopted, and nobody has said what is wanted
        wanted = {name: each.key for name, each in self._wanted.items()}
        held = {name: work.held() for name, work in self._works.items()}
        for name, action in decide(wanted, held, self._triton.status.holds, self._clock()).items():
            if action is not Action.SERVE or not self._may_come_back(name):
                self._act(name, action)

    def _may_come_back(self, name: str) -> bool:
        """Whether the next Triton may be started with this model, which is not to be touched until that is known."""
        work = self._works.get(name)
        served = work is not None and work.state == READY
        return not self._triton.status.holds and (served or name in self._triton.starts_with)

    def _act(self, name: str, action: Action) -> None:
        if action is Action.CANCEL:
            work = self._works[name]
            assert work.task is not None
            work.cancelled = work.task.cancel()
            return
        if action is Action.UNLOAD:
            work = self._works[name]
            work.state = UNLOADING
            self._start(work, lambda: self._unload(work))
        else:
            wanted = self._wanted[name]
            work = self._works.setdefault(name, ModelWork(wanted.version, scheduling=wanted.scheduling))
            work.renew(wanted, FETCHING if self._lacks(wanted.version) else LOADING)
            work.gpu = self._gpu_for(wanted.version)
            self._start(work, lambda: self._steps.serve(work, self._assigned_blobs()))
        self.on_change()

    def _start(self, work: ModelWork, steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
        assert self._group is not None
        work.task = self._group.create_task(self._guard(work, steps))
        # Not at the end of the task's own code, which a task that is cancelled at once never enters.
        work.task.add_done_callback(lambda _: self._ceased(work))

    def _ceased(self, work: ModelWork) -> None:
        work.cease()
        self.wake()

    async def _guard(self, work: ModelWork, steps: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Runs the steps; an error becomes the model's state.

        So does a value that something refuses: what a version holds is anybody's, and must not take the agent and with
        it the node's other models down.
        """
        try:
            await steps()
        except (AimeshError, OSError, ValueError) as error:
            work.fail(str(error), self._clock(), triton_lost=isinstance(error, TritonLostError))
            work.unsigned = isinstance(error, AimeshError) and error.reason == UNSIGNED
            log.warning("model.failed", model=work.version.name, version=work.version.version, reason=str(error))

    async def _unload(self, work: ModelWork) -> None:
        await self._steps.unload(work)
        del self._works[work.version.name]

    async def _sleep(self) -> None:
        due = next_retry(work.held() for work in self._works.values())
        pause_s = None if due is None else max(0.0, due - self._clock())
        try:
            async with asyncio.timeout(pause_s):
                await self._wake.wait()
        except TimeoutError:
            return  # a retry is due

    async def _audit_forever(self) -> None:
        """Looks now and then at what Triton really serves: it may have been told by others, or restarted unseen."""
        while True:
            await asyncio.sleep(_AUDIT_S)
            await asyncio.to_thread(self._steps.stubs.reap)
            self._oom_kills = read_oom_kills()
            if self._triton.status.ready:
                try:
                    await self._audit()
                except AimeshError as error:  # its own supervision deals with a Triton that does not answer
                    log.info("models.audit_failed", reason=str(error))

    async def _audit(self) -> None:
        before = {name: work.loaded for name, work in self._works.items()}
        loading = self._loading()  # what the index says of these is not what serves meanwhile
        index = await self._triton.client.index()
        loading |= self._loading()
        serving = {name for name, entry in index.items() if entry.state == "READY"}
        for name, loaded in before.items():
            if name not in serving | loading:
                self._lose(name, loaded, "Triton does not serve it any more")
            elif loaded is not None and loaded.adopted and name not in loading:
                await self._audit_adopted(name, loaded)
        if self._told:  # before that, a stray may well be a model of ours
            for name in serving - set(self._works) - set(self._wanted) - {SELFTEST}:
                log.warning("model.stray", model=name)
                await self._triton.client.unload(name)

    async def _audit_adopted(self, name: str, loaded: Loaded) -> None:
        """The agent before may have asked for another version, which Triton has finished loading since."""
        config = await self._triton.client.config(name)
        if not config.parameters[KEY].string_value.startswith(content_of(loaded.key)):
            self._lose(name, loaded, "Triton serves another version, which the agent before had asked for")

    def _loading(self) -> set[str]:
        return {name for name, work in self._works.items() if work.pinned}

    def _on_stub_death(self, name: str) -> None:
        work = self._works.get(name)
        if work is not None:
            reason = "a process of the model died"
            if read_oom_kills() > self._oom_kills:
                reason = f"{reason}: {OUT_OF_MEMORY}"
            asyncio.get_running_loop().call_later(_DEATH_PAUSE_S, self._lose, name, work.loaded, reason)

    def _lose(self, name: str, loaded: Loaded | None, reason: str) -> None:
        """What served as `loaded` does no longer, unless something has been done about it since."""
        work = self._works.get(name)
        if work is None or work.state == UNLOADING or work.loaded is not loaded:
            return
        if loaded is not None and loaded.generation == self._triton.status.holds:
            log.warning("model.lost", model=name, reason=reason)
            work.loaded = None
            if work.state == READY:  # else it is the version before, and what became of this one stays to be seen
                work.fail(reason, self._clock())
            self.wake()

    def _gpu_for(self, version: registry_pb2.ModelVersion) -> GpuShare | None:
        needed, held = version.requirements.gpu_memory_bytes, self._triton.status.holds
        promised = [share for work in self._works.values() for share in work.gpu_shares(held)]
        return choose_gpu(self._gpus, promised, needed) if needed else None

    def _lacks(self, version: registry_pb2.ModelVersion) -> bool:
        return not self._store.held().issuperset(file.digest for file in version.files)

    def _assigned_blobs(self) -> set[str]:
        files = [file for wanted in self._wanted.values() for file in wanted.version.files]
        return {digest for file in files for digest in (file.digest, file.chunks) if digest}

    def _generation(self) -> int:
        """Triton's, while it answers."""
        return self._triton.status.generation if self._triton.status.ready else 0
