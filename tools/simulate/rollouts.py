"""Every model of a simulated cluster goes to its next version at once: how long the whole cluster takes."""

from __future__ import annotations

import asyncio
import functools
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from aimesh.rollout.v1 import rollout_pb2
from meshkit.errors import DeadlineError, UnavailableError
from tools.simulate.api import Api, connected
from tools.simulate.gauges import etcd_healthy
from tools.simulate.plan import Plan
from tools.simulate.population import Population
from tools.simulate.servers import Servers, servers

NEXT_VERSION = "1.1.0"
TIMEOUT_S = 300.0
POLL_S = 0.1
OVER = (rollout_pb2.ROLLOUT_STATE_SUCCEEDED, rollout_pb2.ROLLOUT_STATE_ROLLED_BACK)


@dataclass(frozen=True)
class Rolled:
    """What it took."""

    plan: Plan
    surge: int
    """How many replicas of a model changed at a time."""
    seconds: float
    """From the first call until the last rollout had succeeded and every node ran what it should."""
    each_s: tuple[float, ...]
    """How long each rollout took, sorted."""


def roll_all(plan: Plan, surge: int = 1) -> Rolled:
    """Starts etcd and coordinators, has the plan's nodes join and its clients connect, and rolls every model.

    A node reports what it is assigned as loaded at once: no time of a real load is in it. Raises UnavailableError when
    a rollout does not succeed, DeadlineError when something takes far too long.
    """
    with tempfile.TemporaryDirectory(prefix="aimesh-rollouts-") as root, servers(plan, Path(root)) as running:
        return asyncio.run(_rolled(plan, surge, running))


async def _rolled(plan: Plan, surge: int, running: Servers) -> Rolled:
    population = Population(plan, running.place.coordinators)
    try:
        async with connected(running.place.coordinators) as api:
            await _prepare(plan, running, population, api)
            models = [plan.model(index) for index in range(plan.models)]
            began = time.monotonic()
            await api.roll(models, NEXT_VERSION, surge)
            await _until("the rollouts", running, functools.partial(_all_over, api))
            await _until("the nodes", running, lambda: _runs(population, plan, NEXT_VERSION))
            seconds = time.monotonic() - began
            return Rolled(plan, surge, seconds, tuple(sorted(_took_s(each) for each in await api.rollouts())))
    finally:
        await population.close()


async def _prepare(plan: Plan, running: Servers, population: Population, api: Api) -> None:
    """Everything up to the moment when the rollouts may begin."""
    await _until("etcd", running, functools.partial(etcd_healthy, running.place.etcd[0]))
    for index in range(plan.coordinators):
        await _until(f"coordinator-{index + 1}", running, functools.partial(_leads, api, index))
    models, digest = [plan.model(index) for index in range(plan.models)], await api.upload()
    await api.record(models, digest)
    await api.record(models, digest, NEXT_VERSION)
    for index in range(plan.nodes):
        population.start_node(index)
    await _until("joins", running, lambda: all(agent.joined.is_set() for agent in population.agents.values()))
    await api.deploy(models, plan.replicas)
    await _until("replicas", running, lambda: _runs(population, plan, ""))
    population.start_clients()
    await _until("clients", running, lambda: population.board.served(plan.replicas) >= plan.clients)


async def _leads(api: Api, index: int) -> bool:
    try:
        return bool(await api.leader(index))
    except UnavailableError:
        return False


async def _all_over(api: Api) -> bool:
    found = await api.rollouts()
    for each in found:
        if each.state == rollout_pb2.ROLLOUT_STATE_ROLLED_BACK:
            raise UnavailableError(f"the rollout of {each.spec.name} was taken back: {each.reason}")
    return all(each.state in OVER for each in found)


def _runs(population: Population, plan: Plan, version: str) -> bool:
    """Whether the nodes run as many replicas as there are to be, all of this version; of any, without one."""
    held = [each for agent in population.agents.values() for each in agent.versions.values()]
    return len(held) == plan.models * plan.replicas and (not version or set(held) == {version})


def _took_s(rollout: rollout_pb2.Rollout) -> float:
    return (rollout.ended_at.ToNanoseconds() - rollout.started_at.ToNanoseconds()) / 1e9


async def _until(what: str, running: Servers, check: Callable[[], bool | Awaitable[bool]]) -> None:
    """Waits for it. Raises DeadlineError, and UnavailableError when a server has ended."""
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        running.check()
        found = check()
        if found if isinstance(found, bool) else await found:
            return
        if time.monotonic() > deadline:
            raise DeadlineError(f"{what}: not within {TIMEOUT_S:g} s", hint="try a quieter machine")
        await asyncio.sleep(POLL_S)
