"""One simulation from top to bottom."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

from meshkit.errors import AimeshError, DeadlineError
from tools.local.groups import find_error
from tools.simulate.api import Api, connected
from tools.simulate.churn import Churn
from tools.simulate.gauges import etcd_healthy, read_counters, usage
from tools.simulate.plan import Plan
from tools.simulate.population import Population
from tools.simulate.report import PARTS, Machine, Reading, Report, part
from tools.simulate.servers import Servers, not_ready, servers
from tools.simulate.statistics import spread

START_TIMEOUT_S = 120.0
PART_TIMEOUT_S = 120.0
POLL_S = 0.05
WATCH_S = 0.5
"""How often the servers are looked at."""
QUIET_S = 2.0
"""etcd's revision stands still for so long before the idle part begins."""
ROUNDS = 10
"""Changes of each direction that concern every client."""

Tell = Callable[[str, int, int], None]
"""(part, done, total)."""


def simulate(plans: Sequence[Plan], show: Callable[[Plan], AbstractContextManager[Tell]]) -> list[Report]:
    """Runs plans one after the other and measures them. Whatever happens, nothing that it started is left behind.

    `show` gives what is told how far a plan is. Raises UnavailableError or DeadlineError when a server does not start
    or ends, or a part takes far too long.
    """
    try:
        return asyncio.run(_each(plans, show))  # one event loop: gRPC's asyncio half serves a process one well
    except BaseExceptionGroup as group:
        raise find_error(group) or group from None


async def _each(plans: Sequence[Plan], show: Callable[[Plan], AbstractContextManager[Tell]]) -> list[Report]:
    reports = []
    for plan in plans:
        with (
            show(plan) as tell,
            tempfile.TemporaryDirectory(prefix="aimesh-simulate-") as root,
            servers(plan, Path(root)) as running,
        ):
            reports.append(await _watched(plan, running, tell))
    return reports


async def _watched(plan: Plan, running: Servers, tell: Tell) -> Report:
    """The simulation, given up when a server ends."""
    most: dict[str, int] = {}
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(_watch(running, most))
        report = await _Simulation(plan, running, tell).run()
        watching.cancel()
    return dataclasses.replace(report, resident_bytes=most)


async def _watch(running: Servers, most: dict[str, int]) -> None:
    """Looks at the servers again and again: that they run, and the most memory that each was seen to hold."""
    while True:
        running.check()
        for name, size in usage(_pids(running)).resident_bytes.items():
            most[name] = max(size, most.get(name, 0))
        await asyncio.sleep(WATCH_S)


def _pids(running: Servers) -> dict[str, int]:
    return {**running.pids("etcd"), **running.pids("coordinator")}


class _Simulation:
    """The parts of one run, in order; `readings` are the gauges where one part ends and the next begins."""

    def __init__(self, plan: Plan, running: Servers, tell: Tell) -> None:
        self.plan = plan
        self.running = running
        self.tell = tell
        self.population = Population(plan, running.place.coordinators)
        self.before: dict[str, Reading] = {}
        self.after: dict[str, Reading] = {}

    async def run(self) -> Report:
        """Everything, from an empty etcd to the figures."""
        load_before = os.getloadavg()[0]
        try:
            async with connected(self.running.place.coordinators) as api:
                await self._start(api)
                joined_s = await self._join()
                deploy_s = await self._deploy(api)
                clients_s = await self._connect_clients()
                heartbeats = await self._idle()
                churn = Churn(self.population, api, lambda done, total: self.tell("churn", done, total))
                async with self._part("churn"):
                    await churn.run()
                await self._everyone(churn)
        finally:
            await self.population.close()
        machine = Machine(os.cpu_count() or 1, load_before, os.getloadavg()[0])
        return self._report(machine, churn, joined_s=joined_s, deploy_s=deploy_s, clients_s=clients_s, idle=heartbeats)

    async def _start(self, api: Api) -> None:
        """Waits for the servers, and records the models."""
        place, coordinators = self.running.place, len(self.running.place.coordinators)
        for index, address in enumerate(place.etcd):
            await self._answers(f"etcd-{index + 1}", functools.partial(etcd_healthy, address))
        for index in range(coordinators):
            self.tell("start", index, coordinators)
            await self._answers(f"coordinator-{index + 1}", functools.partial(_knows_leader, api, index))
        self.tell("start", coordinators, coordinators)
        await api.record([self.plan.model(index) for index in range(self.plan.models)], await api.upload())

    async def _answers(self, name: str, check: Callable[[], Awaitable[bool]]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not await check():
            if time.monotonic() > deadline:
                raise not_ready(self.running.place, name, START_TIMEOUT_S)
            await asyncio.sleep(0.1)

    async def _join(self) -> float:
        """All nodes join at once."""
        async with self._part("join"):
            began = time.monotonic()
            for index in range(self.plan.nodes):
                self.population.start_node(index)
            await self._until("join", self._joined, self.plan.nodes)
            return time.monotonic() - began

    async def _deploy(self, api: Api) -> float:
        """All models are deployed at once."""
        wanted = self.plan.models * self.plan.replicas
        async with self._part("deploy"):
            began = time.monotonic()
            await api.deploy([self.plan.model(index) for index in range(self.plan.models)], self.plan.replicas)
            await self._until("deploy", self._replicas, wanted)
            return time.monotonic() - began

    async def _connect_clients(self) -> float:
        async with self._part("clients"):
            began = time.monotonic()
            self.population.start_clients()
            await self._until("clients", self._served, self.plan.clients)
            return time.monotonic() - began

    async def _idle(self) -> int:
        """Nothing but heartbeats; how many there were."""
        await self._settle()
        before = self.population.tally.heartbeats
        async with self._part("idle"):
            began = time.monotonic()
            while (passed := time.monotonic() - began) < self.plan.idle_s:
                self.tell("idle", round(passed), round(self.plan.idle_s))
                await asyncio.sleep(min(0.2, self.plan.idle_s - passed))
        self.tell("idle", round(self.plan.idle_s), round(self.plan.idle_s))
        return self.population.tally.heartbeats - before

    async def _settle(self) -> None:
        """Waits until etcd's revision stands still: audit events are on their way to the log, for one."""
        deadline = time.monotonic() + PART_TIMEOUT_S
        since, last = time.monotonic(), -1
        while time.monotonic() - since < QUIET_S:
            if (now := (await read_counters(self.running.place.etcd[0])).revision) != last:
                since, last = time.monotonic(), now
            if since > deadline:
                raise DeadlineError(f"etcd's revision still rises after {PART_TIMEOUT_S:g} s in which nothing changed")
            await asyncio.sleep(0.1)

    async def _everyone(self, churn: Churn) -> None:
        churn.tell = lambda done, total: self.tell("everyone", done, total)
        async with self._part("everyone"):
            await churn.everyone(ROUNDS)

    @asynccontextmanager
    async def _part(self, name: str) -> AsyncIterator[None]:
        """Reads the gauges before and after."""
        self.before[name] = await self._read()
        yield
        self.after[name] = await self._read()

    async def _read(self) -> Reading:
        pids = {**_pids(self.running), **self.population.pids()}
        return Reading(time.monotonic(), await read_counters(self.running.place.etcd[0]), usage(pids))

    async def _until(self, name: str, count: Callable[[], int], total: int) -> None:
        """Waits until as many as there are have come so far. Raises DeadlineError saying how many have not, and what
        else went wrong."""
        deadline = time.monotonic() + PART_TIMEOUT_S
        while (done := count()) < total:
            self.tell(name, done, total)
            if time.monotonic() > deadline:
                raise DeadlineError(self._stuck(name, done, total), hint="try smaller numbers, or a quieter machine")
            await asyncio.sleep(POLL_S)
        self.tell(name, total, total)

    def _stuck(self, name: str, done: int, total: int) -> str:
        tally = self.population.tally
        lost = tally.sessions_lost + tally.joins_failed + self.population.traffic.streams_lost
        ended = "".join(f"; ended by themselves: {count} x {why}" for why, count in lost.most_common(3))
        return f"{name}: {done} of {total} within {PART_TIMEOUT_S:g} s{ended}"

    def _joined(self) -> int:
        return sum(agent.joined.is_set() for agent in self.population.agents.values())

    def _replicas(self) -> int:
        return sum(len(agent.models) for agent in self.population.agents.values())

    def _served(self) -> int:
        return self.population.board.served(self.plan.replicas)

    def _report(
        self, machine: Machine, churn: Churn, *, joined_s: float, deploy_s: float, clients_s: float, idle: int
    ) -> Report:
        board, tally = self.population.board, self.population.tally
        kinds: dict[str, list[float]] = {"all": [], "everyone": []}
        for arrival in board.arrivals:
            kinds.setdefault(arrival.kind, []).append(arrival.took_s)
            if arrival.kind != "everyone":
                kinds["all"].append(arrival.took_s)
        return Report(
            plan=self.plan,
            machine=machine,
            parts={name: part(self.before[name], self.after[name]) for name in PARTS},
            joined_s=joined_s,
            join=spread(tally.join_s),
            clients_s=clients_s,
            deploy_s=deploy_s,
            propagation={kind: spread(took) for kind, took in kinds.items()},
            api=spread(churn.api_s),
            idle_heartbeats=idle,
            changes=churn.made,
            skipped=churn.skipped,
            superseded=board.superseded,
            late_calls=churn.api.late,
            joins_failed=tally.joins_failed,
            sessions_lost=tally.sessions_lost,
            streams_lost=self.population.traffic.streams_lost,
            resident_bytes={},
            lost=tuple(churn.lost),
        )


async def _knows_leader(api: Api, index: int) -> bool:
    try:
        return bool(await api.leader(index))
    except AimeshError:
        return False
