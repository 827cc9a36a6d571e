"""The audit log: every change in it once, in order, whatever dies; and no way to change it unseen."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sql

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from aimesh.registry.v1 import registry_pb2, registry_pb2_grpc
from aimesh.routing.v1 import routing_pb2, routing_pb2_grpc
from coordinator.identity.signing import create_key_file
from coordinator.identity.store import AuditStore
from coordinator.settings import AuditSettings, AuthSettings
from meshkit import scopes
from meshkit.blobs import BlobStore
from meshkit.channel import aio_channel
from meshkit.failpoints import EXIT_STATUS
from tests.mesh.coordinator.conftest import RunningCoordinator, agent, coordinator, model
from tests.mesh.identity.conftest import refused
from tests.processes import EtcdServer, eventually, free_ports

CONTENT = b"abc"
DIGEST = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def identity(running: RunningCoordinator) -> Any:
    return identity_pb2_grpc.IdentityServiceStub(running.channel)


async def events(running: RunningCoordinator, **query: Any) -> list[identity_pb2.AuditEvent]:
    request = identity_pb2.ListAuditEventsRequest(**query)
    found = []
    while True:
        answer = await identity(running).ListAuditEvents(request, timeout=15)
        found += answer.events
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


async def logged(running: RunningCoordinator, count: int) -> list[identity_pb2.AuditEvent]:
    """The events, once so many are in the log."""

    async def all_moved() -> list[identity_pb2.AuditEvent]:
        found = await events(running)
        return found if len(found) == count and all(event.sequence for event in found) else []

    found: list[identity_pb2.AuditEvent] = await eventually(all_moved, what=f"{count} events in the log")
    return found


async def _is_logged(running: RunningCoordinator, name: str) -> bool:
    return any(event.sequence and f'"name": "{name}"' in event.after for event in await events(running))


async def make_key(running: RunningCoordinator, name: str) -> None:
    await identity(running).CreateKey(identity_pb2.CreateKeyRequest(name=name, scopes=[scopes.READ]), timeout=15)


async def verify(running: RunningCoordinator) -> identity_pb2.VerifyAuditResponse:
    answer: identity_pb2.VerifyAuditResponse = await identity(running).VerifyAudit(
        identity_pb2.VerifyAuditRequest(), timeout=30
    )
    return answer


async def test_every_change_is_in_the_log(etcd: EtcdServer, tmp_path: Path) -> None:
    """Who, what, before, after, from where."""
    blobs = BlobStore(tmp_path / "c1")
    blobs.append(DIGEST, CONTENT)
    blobs.commit(DIGEST)
    async with coordinator(etcd, tmp_path) as running:
        registry: Any = registry_pb2_grpc.RegistryServiceStub(running.channel)
        routing: Any = routing_pb2_grpc.RoutingServiceStub(running.channel)
        cluster: Any = cluster_pb2_grpc.ClusterServiceStub(running.channel)
        member = agent(running.settings.address)
        await member.join()
        await registry.CreateVersion(
            registry_pb2.CreateVersionRequest(version=model(digest=DIGEST, size=3)), timeout=15
        )
        for replicas in (1, 2):
            target = routing_pb2.Target(version="1.0.0", replicas=replicas, weight=1)
            deployment = routing_pb2.Deployment(name="m", targets=[target])
            await routing.ApplyDeployment(routing_pb2.ApplyDeploymentRequest(deployment=deployment), timeout=15)
        await routing.DeleteDeployment(routing_pb2.DeleteDeploymentRequest(name="m"), timeout=15)
        await cluster.DrainNode(cluster_pb2.DrainNodeRequest(node_id="n1"), timeout=15)
        await cluster.UndrainNode(cluster_pb2.UndrainNodeRequest(node_id="n1"), timeout=15)
        await make_key(running, "ci")
        await identity(running).RevokeKey(identity_pb2.RevokeKeyRequest(name="ci"), timeout=15)
        found = await logged(running, 8)
        assert [(event.action.rpartition("/")[2], event.target.partition("/")[0]) for event in found] == [
            ("CreateVersion", "models"),
            ("ApplyDeployment", "deployments"),
            ("ApplyDeployment", "deployments"),
            ("DeleteDeployment", "deployments"),
            ("DrainNode", "drains"),
            ("UndrainNode", "drains"),
            ("CreateKey", "keys"),
            ("RevokeKey", "keys"),
        ]
        assert [event.sequence for event in found] == list(range(1, 9))
        assert {(event.actor, event.coordinator) for event in found} == {("anyone", "c1")}
        assert all(event.peer.startswith("ipv4:127.0.0.1:") for event in found)
        assert [(bool(event.before), bool(event.after)) for event in found[:4]] == [
            (False, True),
            (False, True),
            (True, True),
            (True, False),
        ]
        assert not any("hash" in event.before + event.after for event in found)
        assert [e.target for e in await events(running, target_prefix="deployments/", page_size=2)] == [
            "deployments/m"
        ] * 3
        assert await events(running, actor="key:other") == []
        assert (await verify(running)).events == 8
        assert stat.S_IMODE((tmp_path / "c1" / "audit.sqlite").stat().st_mode) == 0o600
        await member.leave()


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ("UPDATE aimesh_audit_events SET actor = 'somebody else' WHERE sequence = 2", "event 2 "),
        ("DELETE FROM aimesh_audit_events WHERE sequence = 2", "event 3 "),
        ("DELETE FROM aimesh_audit_events WHERE sequence = 4", "event 4,"),
        (
            "INSERT INTO aimesh_audit_events SELECT 5, 'forged', at, actor, peer, action, target, before, after, "
            "coordinator, hash FROM aimesh_audit_events WHERE sequence = 4",
            "event 5 ",
        ),
    ],
)
async def test_an_event_that_was_touched_is_found(etcd: EtcdServer, tmp_path: Path, change: str, first: str) -> None:
    async with coordinator(etcd, tmp_path) as running:
        for name in "abcd":
            await make_key(running, name)
        await logged(running, 4)
        with contextlib.closing(sqlite3.connect(tmp_path / "c1" / "audit.sqlite")) as database:
            if not change.startswith("INSERT"):
                with pytest.raises(sqlite3.IntegrityError, match="only ever appended"):
                    database.execute(change)
            for verb in ("update", "delete"):
                database.execute(f"DROP TRIGGER aimesh_audit_no_{verb}")
            database.execute(change)
            database.commit()
        for late in ("e", "f"):  # nor is it hidden by what is logged since, of any length
            with pytest.raises(grpc.aio.AioRpcError, match=first.strip(" ,")) as failure:
                await verify(running)
            assert failure.value.code() == grpc.StatusCode.DATA_LOSS
            await make_key(running, late)
            await eventually(partial(_is_logged, running, late), what="the event in the log")


async def test_a_page_that_cannot_be_is_refused(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path) as running:
        for number in (-1, 2**63, 10**30):
            token = base64.urlsafe_b64encode(str(number).encode()).decode()
            request = identity_pb2.ListAuditEventsRequest(page_token=token)
            code = await refused(identity(running).ListAuditEvents(request, timeout=15))
            assert code == grpc.StatusCode.INVALID_ARGUMENT


async def test_a_leader_that_dies_between_log_and_etcd_loses_nothing_and_repeats_nothing(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    """Killed once the database has the event and etcd has it still; another life of it goes on."""
    port = free_ports(1)[0]
    environ = {
        **os.environ,
        "AIMESH_COORDINATOR_DATA_DIR": str(tmp_path / "c1"),
        "AIMESH_COORDINATOR_ID": "c1",
        "AIMESH_COORDINATOR_PORT": str(port),
        "AIMESH_COORDINATOR_LEADER_TTL_S": "2",
        "AIMESH_COORDINATOR_ETCD_ENDPOINTS": etcd.address,
        "AIMESH_FAILPOINTS": "audit.stored=exit",
    }
    with (tmp_path / "c1.log").open("wb") as output:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tools.cli.main", "coordinator", env=environ, stdout=output, stderr=output
        )
    try:
        async with aio_channel(f"127.0.0.1:{port}") as channel:
            await eventually(lambda: _key_made(channel, "before"), within_s=60, what="a key")
        assert await asyncio.wait_for(child.wait(), 60) == EXIT_STATUS
    finally:
        if child.returncode is None:
            child.kill()
    with contextlib.closing(sqlite3.connect(tmp_path / "c1" / "audit.sqlite")) as database:
        assert database.execute("SELECT count(*) FROM aimesh_audit_events").fetchone() == (1,)
    async with coordinator(etcd, tmp_path, port=port) as running:
        await make_key(running, "after")
        await logged(running, 2)
        assert (await verify(running)).events == 2


async def test_without_its_database_changes_go_on_until_too_many_wait(etcd: EtcdServer, tmp_path: Path) -> None:
    blocked = tmp_path / "not-there"
    audit = AuditSettings(url=f"sqlite:///{blocked}/audit.sqlite", max_backlog=3)
    async with coordinator(etcd, tmp_path, audit=audit) as running:
        for name in "abc":
            await make_key(running, name)
        with pytest.raises(grpc.aio.AioRpcError, match="audit store") as failure:
            await make_key(running, "d")
        assert failure.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await refused(verify(running)) == grpc.StatusCode.UNAVAILABLE
        blocked.mkdir()
        await logged(running, 3)
        await make_key(running, "d")
        await logged(running, 4)


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pgserver = pytest.importorskip("pgserver")
    server = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()


async def test_coordinators_share_one_log_in_postgresql(etcd: EtcdServer, tmp_path: Path, postgres: str) -> None:
    """Changes through both, and a change of leader in between; every event once."""
    audit = AuditSettings(url=postgres)
    keys = {"auth": _shared_keys(tmp_path)}
    async with coordinator(etcd, tmp_path, "c2", audit=audit, **keys) as second:
        async with coordinator(etcd, tmp_path, "c1", audit=audit, **keys) as first:
            for number in range(6):
                await make_key(first if number % 2 else second, f"k{number}")
            assert await logged(first, 6) == await logged(second, 6)
        await make_key(second, "last")
        found = await logged(second, 7)
        assert [event.sequence for event in found] == list(range(1, 8))
        assert {event.coordinator for event in found} == {"c1", "c2"}
        answer = await verify(second)
        assert (answer.events, answer.warning) == (7, "")
    _check_append_only(postgres)


def _check_append_only(postgres: str) -> None:
    """Not even the table's owner changes it by accident; a user who may only append is enough for a coordinator."""
    engine = sql.create_engine(postgres.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection, pytest.raises(sql.exc.DBAPIError, match="only ever appended"):
        connection.exec_driver_sql("DELETE FROM aimesh_audit_events")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE appender LOGIN")
        connection.exec_driver_sql("GRANT SELECT, INSERT ON aimesh_audit_events TO appender")
    engine.dispose()
    limited = AuditStore(sql.make_url(postgres).set(username="appender").render_as_string(hide_password=False))
    assert limited.append([identity_pb2.AuditEvent(id="by-appender")]).sequence == 8
    limited.close()


async def test_coordinators_with_files_of_their_own_say_that_the_log_is_not_whole(
    etcd: EtcdServer, tmp_path: Path
) -> None:
    keys = {"auth": _shared_keys(tmp_path)}
    async with coordinator(etcd, tmp_path, "c1", **keys) as first, coordinator(etcd, tmp_path, "c2", **keys):
        assert "PostgreSQL" in (await verify(first)).warning


def _shared_keys(folder: Path) -> AuthSettings:
    create_key_file(folder / "api-keys.pem")
    return AuthSettings(key_file=folder / "api-keys.pem")


async def _key_made(channel: Any, name: str) -> bool:
    stub: Any = identity_pb2_grpc.IdentityServiceStub(channel)
    try:
        await stub.CreateKey(identity_pb2.CreateKeyRequest(name=name, scopes=[scopes.READ]), timeout=5)
    except grpc.aio.AioRpcError as error:
        return error.code() == grpc.StatusCode.ALREADY_EXISTS
    return True
