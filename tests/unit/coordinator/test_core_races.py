"""Races and limits of a coordinator's loops, on etcd's transactions in memory."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator import keys
from coordinator.api.artifacts import ArtifactsService
from coordinator.controller import PlacementController
from coordinator.decode import advance
from coordinator.etcd import Created, KeyValue, Put
from coordinator.hello import check_report, durable
from coordinator.judge import Judge
from coordinator.main import lasting
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.placement import Placement
from coordinator.placing import placed
from coordinator.probe import TritonProbe
from coordinator.prober import Prober
from coordinator.session import Session
from coordinator.sessions import Sessions
from coordinator.state import State
from meshkit.blobs import BlobStore
from meshkit.errors import DataLossError, InvalidInputError, UnavailableError
from meshkit.tls import TlsSettings
from tests.processes import eventually
from tests.unit.coordinator.test_lost_answers import Memory, election, settings

Node = membership_pb2.Node
SUSPECT = membership_pb2.NODE_STATE_SUSPECT


async def settled(turns: int = 20) -> None:
    """Lets the other tasks go on until they wait for something that does not come by itself."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_a_leaders_key_that_somebody_deleted_is_taken_again() -> None:
    memory = Memory()
    made = election(memory)
    mirror = made._mirror
    campaign = asyncio.create_task(made._campaign())
    await settled()
    first = made.term
    mirror._publish(State(revision=first, leader="c1"))
    await settled()
    assert made.term == first
    mirror._publish(State(revision=first - 1, leader="c2"))  # what was before it led says nothing about now
    await settled()
    assert made.term == first
    del memory.kept[keys.LEADER]
    mirror._publish(State(revision=first + 1, leader=""))
    await settled()
    assert made.term == memory.kept[keys.LEADER].create_revision > first
    campaign.cancel()


async def test_a_lease_is_renewed_at_once_when_a_try_failed() -> None:
    class Hanging(Memory):
        tries: list[float]

        async def keep_alive(self, leases: Sequence[int], timeout_s: float) -> set[int]:
            self.tries.append(asyncio.get_running_loop().time())
            if len(self.tries) == 1:
                await asyncio.sleep(timeout_s)
                raise UnavailableError("etcd does not answer")
            return set(leases)  # ends the loop

    memory = Hanging()
    memory.tries = []
    made = election(memory)
    made._settings = type(settings())(data_dir=Path("/nowhere"), id="c1", leader_ttl_s=2)
    began = asyncio.get_running_loop().time()
    with pytest.raises(Exception, match="the lease has lapsed"):
        await made._renew()
    assert len(memory.tries) == 2
    assert memory.tries[1] - began < 2


async def test_more_failures_than_one_transaction_takes_are_forgiven() -> None:
    memory = Memory()
    memory.kept[keys.LEADER] = KeyValue(keys.LEADER, b"c1", 1, 1)
    names = [f"n{number}" for number in range(300)]
    for name in names:
        await memory.txn([], [Put(keys.failure(name, "m", "1.0.0"), b"{}")])
    failure = membership_pb2.LoadFailure(name="m", version="1.0.0", epoch=1)
    state = State(revision=5, failures={(name, "m", "1.0.0"): failure for name in names})
    made: Any = election(memory)
    judge = Judge(memory, made._mirror, made, settings(), lambda: 0.0)  # type: ignore[arg-type]
    await judge._act(state, Created(keys.LEADER, 1))
    assert list(memory.kept) == [keys.LEADER]


@pytest.mark.parametrize(("leader", "probe"), [(3, "PROBE_SILENT"), (9, "PROBE_UNSPECIFIED")])
async def test_a_deposed_leader_writes_no_probe(leader: int, probe: str) -> None:
    memory = Memory()
    memory.kept[keys.LEADER] = KeyValue(keys.LEADER, b"c2", leader, leader)
    node = Node(id="n1", state=SUSPECT, epoch=2, coordinator_id="gone")
    await memory.txn([], [Put(keys.member("n1"), keys.encode(node))])
    mirror: Any = Mirror(memory)  # type: ignore[arg-type]
    mirror._publish(State(revision=5, members={"n1": node}))

    async def silent(node: Node) -> membership_pb2.Probe.ValueType:
        return membership_pb2.PROBE_SILENT

    sessions: Any = Sessions(memory, mirror, settings())  # type: ignore[arg-type]
    prober = Prober(memory, mirror, sessions, "c1", lambda: 3, silent)  # type: ignore[arg-type]
    await prober._ask_one(node, 3)
    kept = keys.parse(memory.kept[keys.member("n1")].value or b"", Node())
    assert membership_pb2.Probe.Name(kept.probe) == probe


async def test_a_probe_without_a_certificate_says_nothing_about_the_node(tmp_path: Path) -> None:
    gone = tmp_path / "gone.pem"
    ask = TritonProbe(TlsSettings(ca=gone, cert=gone, key=gone))
    with pytest.raises(UnavailableError, match=r"gone\.pem"):
        await ask(Node(id="n1", address="127.0.0.1"))
    memory: Any = Memory()
    prober = Prober(memory, Mirror(memory), Sessions(memory, Mirror(memory), settings()), "c1", lambda: 1, ask)
    await prober._ask_one(Node(id="n1", address="127.0.0.1"), 1)
    assert memory.kept == {}


async def test_an_old_decision_is_not_carried_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    memory: Any = Memory()
    memory.kept[keys.LEADER] = KeyValue(keys.LEADER, b"c2", 9, 9)
    asked: list[str] = []

    async def decided(state: State) -> Placement:
        return Placement({f"n{number:03}": frozenset({("m", "1.0.0")}) for number in range(200)}, {})

    monkeypatch.setattr("coordinator.controller.placed", decided)
    made = election(memory)
    controller = PlacementController(memory, made._mirror, made)
    real = memory.txn

    async def counted(guards: Any, changes: Any) -> int | None:
        asked.append(changes[0].key)
        revision: int | None = await real(guards, changes)
        return revision

    memory.txn = counted
    assert not await controller._act(State(revision=5), Created(keys.LEADER, 3))
    assert 0 < len(asked) < 100
    assert await controller._act(State(revision=5), Created(keys.LEADER, 9))
    assert len(memory.kept) == 201


async def test_placement_does_not_hold_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def slow(state: State) -> Placement:
        seen.append(threading.current_thread().name)
        return Placement({}, {})

    monkeypatch.setattr("coordinator.placing.place", slow)
    await placed(State())
    assert seen[0].startswith("placement")


async def test_lapsed_leases_are_revived_side_by_side() -> None:
    class Lapsed(Memory):
        waiting = most = 0

        async def keep_alive(self, leases: Sequence[int]) -> set[int]:
            return set(leases)

        async def grant(self, ttl_s: int) -> int:
            self.waiting += 1
            self.most = max(self.most, self.waiting)
            await settled(3)
            self.waiting -= 1
            return self.revision + 1000

    memory: Any = Lapsed()
    sessions = Sessions(memory, Mirror(memory), settings(), clock=lambda: 0.0)
    sessions._settings = type(settings())(data_dir=Path("/nowhere"), id="c1", heartbeat_interval_s=0.001)
    for number in range(250):
        node = Node(id=f"n{number}", epoch=1)
        await memory.txn([], [Put(keys.member(node.id), keys.encode(node))])
        sessions._sessions[node.id] = Session(node, 7, 1, 0.0, node.report)
    renewing = asyncio.create_task(sessions._renew_leases())
    await eventually(lambda: all(each.lease > 7 for each in sessions._sessions.values()), what="all leases renewed")
    renewing.cancel()
    assert 1 < memory.most <= 32


async def test_a_loop_that_nobody_cancelled_ends_the_coordinator() -> None:
    """A call on a channel that another task closes ends so."""

    async def loop() -> None:
        raise asyncio.CancelledError

    with pytest.raises(RuntimeError, match="copies"):
        await lasting("copies", loop())
    told_to_go = asyncio.create_task(lasting("copies", asyncio.sleep(60)))
    await settled()
    told_to_go.cancel()
    with pytest.raises(asyncio.CancelledError):
        await told_to_go


async def test_a_peer_that_is_dropped_still_answers_the_calls_in_flight() -> None:
    class Slow(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # generated without types
        async def Check(self, request: Any, context: Any) -> health_pb2.HealthCheckResponse:  # noqa: N802
            asked.set()
            await dropped.wait()
            return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)

    asked, dropped = asyncio.Event(), asyncio.Event()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(Slow(), server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    memory: Any = Memory()
    peers = Peers(Mirror(memory), "c1", TlsSettings())
    stub: Any = health_pb2_grpc.HealthStub(peers.channel(address))
    call = asyncio.ensure_future(stub.Check(health_pb2.HealthCheckRequest(), timeout=20))
    del stub
    await asked.wait()
    peers.drop(address)
    dropped.set()
    assert (await call).status == health_pb2.HealthCheckResponse.SERVING
    await peers.close()
    await server.stop(0)


def test_bytes_that_are_no_text_are_damage() -> None:
    with pytest.raises(DataLossError, match="members/n1"):
        advance(State(), 2, [KeyValue(keys.member("n1"), b"\xff\xfe", 2)])


def test_a_report_must_hold_ports_and_its_messages_end() -> None:
    report = membership_pb2.ModelReport()
    report.triton.grpc_port = 65535
    report.models.add(name="m", message="x" * 1_000_000)
    check_report("n1", report)
    assert durable(report).ByteSize() < 3000
    report.triton.http_port = 65536
    with pytest.raises(InvalidInputError, match="http_port is 65536"):
        check_report("n1", report)


async def test_a_blob_that_a_new_version_takes_over_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.api.artifacts.RECORDING_S", 0.05)
    blobs = BlobStore(tmp_path)
    kept, lost = (hashlib.sha256(text).hexdigest() for text in (b"kept", b"lost"))
    for digest, text in ((kept, b"kept"), (lost, b"lost")):
        blobs.append(digest, text)
        blobs.commit(digest)
    old = registry_pb2.ModelVersion(files=[registry_pb2.ModelFile(digest=each) for each in (kept, lost)])
    new = registry_pb2.ModelVersion(files=[registry_pb2.ModelFile(digest=kept)])
    memory: Any = Memory()
    mirror = Mirror(memory)
    mirror._publish(State(revision=1, versions={("m", "1.0.0"): old}))
    made: Any = None
    forgetting = asyncio.create_task(ArtifactsService(blobs, made, made).forget_unused(mirror))
    await settled()
    mirror._publish(State(revision=2))
    await settled()
    mirror._publish(State(revision=3, versions={("m", "2.0.0"): new}))
    await eventually(lambda: lost not in blobs.held(), what="the other blob removed")
    assert kept in blobs.held()
    forgetting.cancel()
