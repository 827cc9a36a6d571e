"""The session and the fetching of blobs against real coordinators' servers that go, refuse, cut and lie."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from meshkit.errors import ConflictError, DataLossError, NotFoundError, UnavailableError
from node_agent.fetch import Fetcher
from node_agent.session import Session
from node_agent.store import ModelStore
from tests.mesh.node_agent.support import Coordinator
from tests.processes import eventually, free_ports


class Reported:
    """What the node would report."""

    def __init__(self) -> None:
        self.report = membership_pb2.ModelReport(assignments_revision=0)
        self.assigned: list[membership_pb2.Assignments] = []

    def session(self, *coordinators: Coordinator) -> Session:
        return Session(
            tuple(coordinator.address for coordinator in coordinators),
            membership_pb2.Hello(node_id="node-1"),
            lambda: self.report,
            lambda: membership_pb2.Load(cpu_utilization=0.5),
            self.assigned.append,
        )


@asynccontextmanager
async def started(*coordinators: Coordinator) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for coordinator in coordinators:
            await coordinator.start()
            stack.push_async_callback(coordinator.stop)
        yield


@asynccontextmanager
async def joined(session: Session) -> AsyncIterator[None]:
    task = asyncio.create_task(session.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_protocol_from_hello_to_leaving() -> None:
    coordinator, node = Coordinator(), Reported()
    async with started(coordinator):
        session = node.session(coordinator)
        async with joined(session):
            await asyncio.wait_for(session.welcomed.wait(), 10)
            await coordinator.assign(registry_pb2.ModelVersion(name="m", version="1.0.0"))
            await eventually(lambda: node.assigned and node.assigned[-1].models[0].name == "m")
            await eventually(lambda: len(coordinator.heartbeats) >= 3)
            assert coordinator.heartbeats[0].load.cpu_utilization == 0.5
            assert len(coordinator.reports) == 1, "an unchanged report is not sent again"
            session.changed()
            node.report = membership_pb2.ModelReport(assignments_revision=1)
            session.changed()
            await eventually(lambda: coordinator.reports[-1].assignments_revision == 1)
            assert len(coordinator.reports) == 2
            await session.leave("maintenance")
            assert coordinator.leaving == ["maintenance"]


async def test_what_becomes_known_later_is_told_without_leaving() -> None:
    coordinator, node = Coordinator(), Reported()
    async with started(coordinator):
        session = node.session(coordinator)
        session.tell_runtimes({"python": "3"})
        async with joined(session):
            await asyncio.wait_for(session.welcomed.wait(), 10)
            session.tell_runtimes({"python": "3", "training": "2.9"})
            await eventually(lambda: len(coordinator.hellos) == 2)
            assert [dict(each.runtimes) for each in coordinator.hellos] == [
                {"python": "3"},
                {"python": "3", "training": "2.9"},
            ]
            assert coordinator.leaving == []


async def test_moves_to_another_coordinator_when_one_dies() -> None:
    first, second, node = Coordinator(), Coordinator(), Reported()
    async with started(second):
        await first.start()
        session = node.session(first, second)
        async with joined(session):
            await eventually(lambda: first.heartbeats)
            await first.stop()
            await eventually(lambda: second.heartbeats)
            assert session.coordinators[0] == second.address


async def test_waits_for_the_only_coordinator_to_come_back() -> None:
    (port,) = free_ports(1)
    node, first = Reported(), Coordinator()
    await first.start(port)
    async with joined(node.session(first)):
        await eventually(lambda: first.heartbeats)
        await first.stop()
        again = Coordinator()
        await again.start(port)
        await eventually(lambda: again.heartbeats)
        assert len(again.hellos) == 1
        await again.stop()


async def test_a_node_id_that_another_agent_has_is_tried_again() -> None:
    coordinator, node = Coordinator(), Reported()
    coordinator.refusal = ConflictError("node node-1 is alive elsewhere")
    async with started(coordinator):
        session = node.session(coordinator)
        async with joined(session):
            await asyncio.sleep(0.3)
            assert not session.welcomed.is_set()
            coordinator.refusal = None
            await asyncio.wait_for(session.welcomed.wait(), 10)


async def test_leaving_without_a_coordinator_takes_no_time() -> None:
    session = Reported().session(Coordinator())
    session._configured = ("127.0.0.1:1",)
    async with asyncio.timeout(3):
        await session.leave("shutdown")


def _file(content: bytes) -> registry_pb2.ModelFile:
    return registry_pb2.ModelFile(path="w", digest=hashlib.sha256(content).hexdigest(), size=len(content))


async def test_a_download_that_is_cut_goes_on_where_it_was(tmp_path: Path) -> None:
    content = os.urandom(5 << 20)
    empty, holder = Coordinator(), Coordinator()
    holder.blobs.add(content)
    holder.cut_after = 2 << 20
    store, seen = ModelStore(tmp_path, 1 << 30), list[int]()
    async with started(empty, holder):
        fetcher = Fetcher(store, lambda: [empty.address, holder.address])
        await asyncio.gather(*(fetcher.fetch(_file(content), (), seen.append) for _ in range(2)))
    assert store.path(_file(content).digest).read_bytes() == content
    assert [offset for _, offset in holder.downloads] == [0, 2 << 20, 4 << 20], "once, though two asked for it"
    assert seen == sorted(seen)
    assert seen[-1] == len(content)


async def test_a_partial_download_of_an_earlier_agent_is_used(tmp_path: Path) -> None:
    content = os.urandom(1000)
    holder = Coordinator()
    holder.blobs.add(content)
    ModelStore(tmp_path, 1 << 20).append(_file(content).digest, content[:600])
    async with started(holder):
        await Fetcher(ModelStore(tmp_path, 1 << 20), lambda: [holder.address]).fetch(_file(content), (), lambda _: None)
    assert holder.downloads == [(_file(content).digest, 600)]


async def test_lies_are_noticed_and_nothing_of_them_is_kept(tmp_path: Path) -> None:
    right = b"right content"
    file = _file(right)
    for wrong in (b"wrong content", b"right content and more", b"right"):
        liar = Coordinator()
        liar.blobs[file.digest] = wrong
        store = ModelStore(tmp_path, 1 << 20)
        async with started(liar):
            with pytest.raises(DataLossError):
                await Fetcher(store, liar.addresses).fetch(file, (), lambda _: None)
        assert store.held() == frozenset()


async def test_what_nobody_has_and_nobody_at_all(tmp_path: Path) -> None:
    store, file = ModelStore(tmp_path, 1 << 20), _file(b"x")
    empty = Coordinator()
    async with started(empty):
        with pytest.raises(NotFoundError, match=file.digest):
            await Fetcher(store, lambda: [empty.address]).fetch(file, (), lambda _: None)
    with pytest.raises(UnavailableError):
        await Fetcher(store, lambda: ["127.0.0.1:1"]).fetch(file, (), lambda _: None)
