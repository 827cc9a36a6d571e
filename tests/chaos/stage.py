"""Where scenarios are played: who plays which role, and how each act is done."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import grpc
import grpc.aio
import pytest
from pyetcd import etcdrpc

from meshkit.channel import aio_channel
from meshkit.errors import AimeshError, ExhaustedError, PreconditionError
from tests.chaos import acts
from tests.chaos.acts import Act
from tests.chaos.history import Event
from tests.chaos.load import MODEL
from tests.chaos.mesh import INSIDE, Mesh
from tests.chaos.observer import Observer
from tests.chaos.proxy import ANYBODY, NO_FAULT
from tests.processes import answers, eventually

PATIENCE_S = 60.0
"""How long an act may take before the scenario fails."""


class Stage:
    """Does acts on a mesh; `tell` hears of each."""

    def __init__(self, mesh: Mesh, observer: Observer, clients: Iterable[str], tell: Callable[[Event], None]) -> None:
        self.mesh = mesh
        self.observer = observer
        self.clients = tuple(clients)
        self.roles: dict[str, str] = {}
        self._tell = tell
        self._tritons: dict[str, int] = {}
        self._deployed = 0
        self.versions = {MODEL: "1.0.0"}
        """The version of each model that was deployed last."""

    async def cast(self) -> None:
        """Gives out the roles, by what the mesh is like now."""
        serving, state = self.observer.serving(), self.observer.state
        etcd_leader = await self._etcd_leader()
        roles = {"leader": state.leader, "etcd-leader": etcd_leader}
        for names, cast in (
            (("victim", "peer"), serving),
            (("spare",), [node for node in self.mesh.nodes if node not in serving]),
            (("follower", "follower2"), [name for name in self.mesh.coordinators if name != state.leader]),
            (("member", "member2"), [name for name in self.mesh.members if name != etcd_leader]),
        ):
            roles |= dict(zip(names, cast, strict=False))
        roles["holder"] = state.nodes[roles["victim"]].coordinator_id
        self.roles = roles
        self._tritons = {node: self.mesh.triton_pid(node) for node in self.mesh.nodes}

    async def do(self, act: Act) -> None:
        """Does one act to its end. Fails when it cannot be done, or when it does what it must not."""
        targets = self._named(getattr(act, "targets", ()))
        self._tell_of(act, targets)
        match act:
            case acts.Send():
                await self._send(act.number, targets)
            case acts.Start():
                await self._start(targets, wait=act.wait)
            case acts.Recover():
                for node in targets:
                    await self._recovered(node)
            case acts.Link():
                await self._link(act, targets)
            case _:
                await self._do_more(act, targets)

    async def heal(self) -> None:
        """Undoes whatever was left: faults, stops, failpoints, dead processes."""
        await self.mesh.proxy.heal()
        for name, process in self.mesh.processes.items():
            process.arm("")
            if process.fake_clock:
                process.set_clock(0)
            process.signal(signal.SIGCONT)
            if not process.alive and name not in self.clients:
                process.launch()
        for node in self.mesh.nodes:
            with suppress(ProcessLookupError):
                if pid := self.mesh.triton_pid(node):
                    os.kill(pid, signal.SIGCONT)

    async def _do_more(self, act: Act, targets: list[str]) -> None:
        match act:
            case acts.Clock():
                for name in targets:
                    self.mesh.processes[name].set_clock(act.offset_s)
            case acts.Arm():
                for name in targets:
                    self.mesh.processes[name].arm(act.text)
            case acts.Hit():
                await self._hit(act, targets)
            case acts.Deploy():
                await self._deploy(act)
            case acts.Ready():
                await self._ready(act)
            case acts.Undeploy():
                await self.mesh.undeploy(act.model)

    def _tell_of(self, act: Act, targets: list[str]) -> None:
        match act:
            case acts.Send():
                what, fault = act.number.name, act.number != signal.SIGCONT
            case acts.Link():
                what, fault = f"{act.clients} {act.fault}", act.fault != NO_FAULT
            case acts.Clock():
                what, fault = f"{act.offset_s:+} s", act.offset_s != 0
            case acts.Deploy():
                what, fault = act.model, act.fails is not None
            case _:
                what, fault = "", False
        self._tell(Event(time.monotonic(), f"{type(act).__name__} {what}".strip(), ", ".join(targets), fault))

    async def _send(self, number: signal.Signals, targets: list[str]) -> None:
        for target in targets:
            if target.startswith("triton:"):
                pid = self.mesh.triton_pid(target.removeprefix("triton:"))
                assert pid, f"{target} does not run"
                os.kill(pid, number)
            else:
                assert self.mesh.processes[target].alive, f"{target} is dead already"
                self.mesh.processes[target].signal(number)
        if number in (signal.SIGTERM, signal.SIGHUP):
            for target in targets:
                await asyncio.to_thread(self.mesh.processes[target].reap)

    async def _start(self, targets: list[str], *, wait: bool) -> None:
        started = [self.mesh.processes[name] for name in targets if not self.mesh.processes[name].alive]
        for process in started:
            process.launch()
        if wait:
            await asyncio.gather(*(process.running() for process in started))

    async def _recovered(self, node: str) -> None:
        def recovered() -> bool:
            other = self.mesh.triton_pid(node) not in (0, self._tritons[node])
            return other and answers(self.mesh.port(node), INSIDE)

        await eventually(recovered, within_s=PATIENCE_S, what=f"{node}'s agent starting Triton again")

    async def _link(self, act: acts.Link, servers: list[str]) -> None:
        clients = self._named(act.clients)
        counts = [await self.mesh.proxy.set(client, server, act.fault) for client in clients for server in servers]
        assert act.fault == NO_FAULT or any(counts), f"nobody of {clients} was connected to {servers}"

    async def _hit(self, act: acts.Hit, targets: list[str]) -> None:
        def hit() -> str:
            return next((name for name in targets if act.failpoint in self.mesh.processes[name].hits()), "")

        found = str(await eventually(hit, within_s=PATIENCE_S, what=f"failpoint {act.failpoint}"))
        self._tell(Event(time.monotonic(), f"failpoint {act.failpoint}", found, fault=True))
        self.roles["hit"] = found
        if act.ends:
            await asyncio.to_thread(self.mesh.processes[found].reap)

    async def _deploy(self, act: acts.Deploy) -> None:
        self._deployed += 1
        version = self.versions[act.model] = f"1.0.{self._deployed}"
        await self.mesh.deploy(act.model, version, act.source, 1, act.ballast_bytes, copied=not act.wait)
        if not act.wait:
            return
        if act.fails is None:
            await self.mesh.placed(act.model, version, PATIENCE_S)
        else:
            with pytest.raises(AimeshError, match=act.fails):
                await self.mesh.placed(act.model, version, PATIENCE_S)

    async def _ready(self, act: acts.Ready) -> None:
        """Asks again when a replica has failed for now: it is tried again by itself."""
        until = time.monotonic() + act.within_s
        while True:
            try:
                return await self.mesh.placed(act.model, self.versions[act.model], until - time.monotonic())
            except (PreconditionError, ExhaustedError):
                if time.monotonic() > until:
                    raise

    async def _etcd_leader(self) -> str:
        for member in self.mesh.members:
            async with aio_channel(f"{INSIDE}:{self.mesh.port(member)}") as channel:
                with suppress(grpc.aio.AioRpcError):
                    status = await etcdrpc.MaintenanceStub(channel).Status(etcdrpc.StatusRequest(), timeout=1.0)
                    if status.leader == status.header.member_id:
                        return member
        raise AssertionError("etcd has no leader")

    def _named(self, targets: Iterable[str]) -> list[str]:
        """Processes by name, role or kind."""
        found: list[str] = []
        for target in targets:
            if target == "clients":
                found += ["gateway", *self.clients]
            elif target.endswith("*") and target != ANYBODY:
                found += [name for name in self.mesh.processes if name.startswith(f"{target[:-1]}-")]
            else:
                prefix = "triton:" if target.startswith("triton:") else ""
                name = target.removeprefix(prefix)
                found.append(prefix + self.roles.get(name, name))
        return found
