"""Plays rollouts on a mesh under load and keeps what happened."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import grpc
import grpc.aio

from aimesh.artifacts.v1 import artifacts_pb2, artifacts_pb2_grpc
from aimesh.cluster.v1 import cluster_pb2
from aimesh.rollout.v1 import rollout_pb2
from inference.packaging import package
from meshkit.errors import PreconditionError, UnavailableError
from meshkit.failpoints import EXIT_STATUS
from meshkit.grpc_errors import from_call
from tests.chaos.history import Event
from tests.chaos.mesh import REPO, Mesh, Shape
from tests.chaos.observer import status_problems
from tests.chaos.processes import Process
from tests.chaos.rollouts import models
from tests.chaos.rollouts.check import THROUGH_GATEWAY
from tests.chaos.rollouts.history import Answer, History, Move, from_line
from tests.chaos.rollouts.models import MODEL
from tests.chaos.rollouts.record import Record, move
from tests.chaos.rollouts.scenarios import NEW, OLD, At, Scenario
from tests.processes import eventually
from tools.cli import placement
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.rollout_client import Verb, start_rollout, steer
from tools.cli.rollout_spec import Asked, spec_of
from tools.cli.upload import push

RATE = 100.0
"""Requests a second of each client."""
REPLICAS = 2
QUESTIONS = 100
SETTLE_S = 60.0
END_S = 240.0
"""How long a rollout may take before it is given up."""
TAIL_S = 1.5
"""How long clients are watched after its end: longer than they may take to hear of it."""
SHAPE = Shape(nodes=4, coordinators=3, etcd=1, coordinator={"heartbeat_interval_s": 0.5})
"""Room for a new version beside the old one."""
HOLD = "rollout.decided=error"
"""Failpoints with which a rollout makes no move while killed coordinators start again, so that no step is missed."""
BLACKOUT_S = 8.0
"""How long all coordinators stay dead."""
_OVER = ("SUCCEEDED", "ROLLED_BACK")


class Runner:
    """One mesh and its clients, for any number of rollouts one after the other."""

    def __init__(self, folder: Path, shape: Shape = SHAPE) -> None:
        self.mesh = Mesh(folder, shape)
        self.history = History()
        self.record = Record(self.mesh, lambda fact: self.history.add(fact))
        self._clients = {"xds": f"xds:///{MODEL}", THROUGH_GATEWAY: self.mesh.gateway}
        self._pushed = 0
        self._version = ""
        self._watching: asyncio.Task[None] | None = None
        self._starting: dict[str, asyncio.Task[None]] = {}
        self._armed = ""
        self._killed = 0
        """The term whose leader was killed last."""

    async def start(self) -> None:
        """Starts the mesh, deploys the first version, starts the load; returns when all is well."""
        await self.mesh.start()
        self._version = await self._push(models.plain)
        await placement.apply(self.mesh.target, MODEL, self._version, REPLICAS)
        await self.mesh.placed(MODEL, self._version, SETTLE_S)
        self._watching = asyncio.create_task(self.record.run())
        told = {"GRPC_XDS_BOOTSTRAP": str(self.mesh.xds_bootstrap()), "PYTHONPATH": str(REPO)}
        for name, target in self._clients.items():
            argv = [sys.executable, "-m", "tests.chaos.rollouts.load", name, target, str(RATE), str(self._out(name))]
            self.mesh.processes[name] = Process(name, argv, self.mesh.folder / "run", None, told)
            self.mesh.processes[name].launch()
        await eventually(lambda: all(self._flying(name) for name in self._clients), within_s=SETTLE_S, what="load")
        await self._settled()

    async def stop(self) -> None:
        """Ends everything."""
        tasks = [*self._starting.values(), *([self._watching] if self._watching else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.mesh.stop()

    async def play(self, scenario: Scenario) -> History:
        """Plays one from a mesh that is well to one that is well again. What happened until then is in `history`.

        Raises when something cannot be done.
        """
        if scenario.before is not None:
            await self._replace(scenario.before)
        old, new = self._version, await self._push(scenario.source)
        self.history = history = History(scenario.name, time.monotonic(), old=old, new=new)
        assert self.record.wish is not None
        history.add(self.record.wish)
        await asyncio.sleep(0.5)  # some load before it begins
        spec = spec_of(_filled(scenario.asked, old, new))
        if scenario.questions:
            spec.gates.evaluation.CopyFrom(await self._questions())
        started = await start_rollout(self.mesh.target, spec)
        async with asyncio.timeout(END_S):
            await self._follow(scenario, started.rollout.id)
        self._arm("")
        await self._end(scenario)
        await asyncio.sleep(TAIL_S)
        history.ended = time.monotonic()
        for answer in await self._answers(history.began, history.ended):
            history.add(answer)
        return history

    async def heal(self) -> bool:
        """After one that went wrong: ends its rollout. Whether all is well then."""
        self._arm("")
        self._revive()
        try:
            await self._settled()
            if move(0, 0, self.record.rollout).state not in _OVER:
                await self._steer("abort")
                await eventually(lambda: move(0, 0, self.record.rollout).state in _OVER, within_s=SETTLE_S)
            await self._settled()
        except (AssertionError, UnavailableError, PreconditionError):
            return False
        self._version = next(target.version for target in self.record.deployment.targets if target.weight)
        return all(self.mesh.processes[name].alive for name in self._clients)

    async def _follow(self, scenario: Scenario, rollout_id: str) -> None:
        """Does what the scenario does at its moments, until the rollout has ended."""
        done: set[tuple[str, str, int]] = set()
        while True:
            self._check_record()
            self._revive()
            deadly = scenario.kill_each or scenario.armed
            self._arm(HOLD if deadly and not self._all_up() else scenario.armed)
            now = move(0, 0, self.record.rollout)
            if now.id == rollout_id:
                if now.state == scenario.bars.state or now.state in _OVER:
                    return
                moment = (now.state, now.phase, now.step)
                if moment not in done:
                    done.add(moment)
                    await self._act(scenario, now)
                    continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.1):
                    await self.record.changed()

    async def _act(self, scenario: Scenario, now: Move) -> None:
        forward, at = now.state == "RUNNING", At(now.step, now.phase)
        if forward and at == scenario.abort:
            await self._steer("abort")
        if forward and at == scenario.promote:
            await self._steer("promote", self.history.new)
        if forward and at == scenario.blackout:
            await self._black_out(now)
        if scenario.kill_each or (forward and at == scenario.kill):
            await self._kill_leader()

    async def _kill_leader(self) -> None:
        """Once those killed before are back: clients without any coordinator would go on with what they know."""

        def another_leads() -> bool:
            return self._all_up() and self.record.term not in (0, self._killed)

        await eventually(another_leads, within_s=SETTLE_S, what="another leader")
        now, leader = move(0, 0, self.record.rollout), self.record.leader
        if now.state not in _OVER:
            self._killed = self.record.term
            self.mesh.processes[leader].signal(signal.SIGKILL)
            self.history.add(Event(time.monotonic(), f"SIGKILL at {now.state} {now.phase} {now.step}", leader))

    async def _black_out(self, now: Move) -> None:
        """Nobody decides, nobody tells clients anything, for longer than the leader's lease."""
        for name in self.mesh.coordinators:
            self.mesh.processes[name].signal(signal.SIGKILL)
            self.history.add(Event(time.monotonic(), f"SIGKILL at {now.state} {now.phase} {now.step}", name))
        await asyncio.sleep(BLACKOUT_S)

    async def _steer(self, verb: Verb, version: str = "") -> None:
        """As a person would: tried again while the coordinator that was asked is just dying."""
        self.history.add(Event(time.monotonic(), verb, MODEL, fault=False))

        async def steered() -> bool:
            try:
                return bool(await steer(self.mesh.target, verb, MODEL, "as the scenario says", version))
            except UnavailableError:
                return False
            except grpc.aio.AioRpcError as error:
                if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                    return False
                raise from_call(error) from None

        await eventually(steered, within_s=SETTLE_S, what=verb)

    async def _end(self, scenario: Scenario) -> None:
        """Ends one that is held, and waits until what is given up is gone."""
        if scenario.bars.state == "HELD":
            await self._steer("abort")
            await eventually(lambda: move(0, 0, self.record.rollout).state in _OVER, within_s=SETTLE_S, what="abort")
        self._revive()
        await self._settled()
        (self._version,) = (target.version for target in self.record.deployment.targets if target.weight)

    def _revive(self) -> None:
        """Starts coordinators again that were killed."""
        for name in self.mesh.coordinators:
            process = self.mesh.processes[name]
            if not process.alive:
                if process.reap() == EXIT_STATUS:
                    self.history.add(Event(time.monotonic(), f"failpoint {process.hits()[-1:]}", name))
                process.launch()
                self._starting[name] = asyncio.create_task(process.running())

    def _all_up(self) -> bool:
        """Whether every coordinator runs, and has said so since it was started last."""
        for name, task in list(self._starting.items()):
            if task.done():
                task.result()
                del self._starting[name]
        return not self._starting and all(self.mesh.processes[name].alive for name in self.mesh.coordinators)

    def _arm(self, failpoints: str) -> None:
        if failpoints != self._armed:
            self._armed = failpoints
            for name in self.mesh.coordinators:
                self.mesh.processes[name].arm(failpoints)

    async def _replace(self, source: Callable[[str], str]) -> None:
        """Deploys another version in place of the one that runs."""
        self._version = await self._push(source)
        await placement.apply(self.mesh.target, MODEL, self._version, REPLICAS)
        await self.mesh.placed(MODEL, self._version, SETTLE_S)
        await self._settled()

    async def _push(self, source: Callable[[str], str]) -> str:
        """The next version, with this program."""
        self._pushed += 1
        version = f"1.0.{self._pushed}"
        place = self.mesh.folder / "models" / MODEL / version
        (place / "1").mkdir(parents=True)
        (place / "config.pbtxt").write_text(models.CONFIG)
        (place / "1" / "model.py").write_text(source(version))
        with package(place, MODEL, version) as packed:
            await push(self.mesh.target, packed, lambda _: None)
        return version

    async def _questions(self) -> rollout_pb2.Evaluation:
        """An evaluation set of sums, uploaded."""
        lines = [json.dumps({"inputs": {"x": [x]}, "expected": [x + 1]}) for x in range(QUESTIONS)]
        content = "\n".join(lines).encode()
        digest = hashlib.sha256(content).hexdigest()
        request = artifacts_pb2.UploadBlobRequest(digest=digest, size=len(content), data=content)
        async with connect(self.mesh.target, "coordinator") as channel:
            stub = artifacts_pb2_grpc.ArtifactsServiceStub(channel)
            await stub.UploadBlob(iter([request]), timeout=CALL_TIMEOUT_S)
        return rollout_pb2.Evaluation(dataset=digest, output="y", metrics=["exact_match"])

    async def _settled(self) -> None:
        """Returns when every coordinator shows all as it should be. Fails when that takes too long."""
        await eventually(self._is_well, within_s=SETTLE_S, what="a mesh that is well")

    def _check_record(self) -> None:
        """Raises what ended it."""
        if self._watching is not None and self._watching.done():
            self._watching.result()

    async def _is_well(self) -> bool:
        self._check_record()
        self._revive()  # one that ended by its last write
        names = self.mesh.coordinators
        statuses = await asyncio.gather(*map(self.mesh.status, names), return_exceptions=True)
        found = [each for each in statuses if isinstance(each, cluster_pb2.Status)]
        return len(found) == len(names) and not any(status_problems(each, names, self.mesh.nodes) for each in found)

    async def _answers(self, began: float, ended: float) -> Sequence[Answer]:
        """What the clients asked in that time, once all of it is answered."""

        def complete() -> bool:
            return all(self._flying(name) > ended for name in self._clients)

        await eventually(complete, within_s=SETTLE_S, what="an answer or an error to every request")
        found = []
        for name in self._clients:
            facts = map(from_line, self._out(name).read_text().splitlines())
            found += [fact for fact in facts if began <= fact.start <= ended]
        return sorted(found, key=lambda answer: answer.start)

    def _flying(self, client: str) -> float:
        """When the oldest request in flight began; 0 before the first."""
        path = Path(f"{self._out(client)}.flight")
        return float(path.read_text() or 0) if path.exists() else 0.0

    def _out(self, client: str) -> Path:
        return self.mesh.folder / "run" / f"{client}.jsonl"


def _filled(asked: Asked, old: str, new: str) -> Asked:
    """With the model's name and its versions."""
    arms = tuple(arm.replace(OLD, old).replace(NEW, new) for arm in asked.arms)
    return replace(asked, name=MODEL, version=asked.version.replace(NEW, new), arms=arms)
