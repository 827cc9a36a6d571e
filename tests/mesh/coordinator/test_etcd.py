"""The etcd client against a real etcd: guards, watches, leases, other endpoints, authentication, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from pyetcd import etcdrpc

from coordinator.etcd import Batch, CompactedError, Created, Delete, Etcd, KeyValue, Put, RefusedError, Unchanged
from coordinator.settings import EtcdSettings
from meshkit.channel import aio_channel
from meshkit.errors import UnavailableError
from tests.processes import EtcdServer, etcd_server, free_ports


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with etcd_server(tmp_path_factory.mktemp("etcd")) as started:
        yield started


@contextlib.asynccontextmanager
async def client(*endpoints: str, **settings: object) -> AsyncIterator[Etcd]:
    etcd = Etcd(EtcdSettings(endpoints=endpoints, **settings))  # type: ignore[arg-type]
    try:
        await etcd.connect()
        yield etcd
    finally:
        await etcd.close()


async def test_a_write_on_a_changed_key_does_nothing(server: EtcdServer) -> None:
    async with client(server.address) as etcd:
        first = await etcd.txn([Unchanged("/t/a", 0)], [Put("/t/a", b"1")])
        assert first is not None
        assert await etcd.txn([Unchanged("/t/a", 0)], [Put("/t/a", b"2")]) is None
        assert await etcd.txn([Created("/t/a", first)], [Put("/t/a", b"3"), Delete("/t/none")]) is not None
        _, (found, missing) = await etcd.get("/t/a", "/t/none")
        assert (found.value, found.create_revision, missing.mod_revision) == (b"3", first, 0)


async def test_a_watch_gives_every_change_after_the_list(server: EtcdServer) -> None:
    async with client(server.address) as etcd:
        await etcd.txn([], [Put("/w/a", b"1")])
        revision, listed = await etcd.list("/w/")
        assert [kv.key for kv in listed] == ["/w/a"]
        await etcd.txn([], [Put("/w/b", b"2")])
        await etcd.txn([], [Delete("/w/a")])
        seen = await _changes(etcd, revision, count=2)
        assert [(kv.key, kv.value) for kv in seen] == [("/w/b", b"2"), ("/w/a", None)]


async def test_a_compacted_revision_is_said_to_be(server: EtcdServer) -> None:
    async with client(server.address) as etcd:
        first = await etcd.txn([], [Put("/c/a", b"1")])
        last = await etcd.txn([], [Put("/c/a", b"2")])
        assert first is not None
        channel = aio_channel(server.address)
        await etcdrpc.KVStub(channel).Compact(etcdrpc.CompactionRequest(revision=last, physical=True), timeout=5)
        await channel.close(None)
        with pytest.raises(CompactedError):
            await _changes(etcd, first - 1, count=1)


async def test_lapsed_leases_are_named_and_take_their_keys(server: EtcdServer) -> None:
    async with client(server.address) as etcd:
        kept, dropped = await etcd.grant(30), await etcd.grant(30)
        await etcd.txn([], [Put("/l/a", b"1", lease=dropped)])
        await etcd.revoke(dropped)
        await etcd.revoke(dropped)
        assert await etcd.keep_alive([kept, dropped]) == {dropped}
        assert await etcd.keep_alive([]) == set()
        assert (await etcd.get("/l/a"))[1][0].value is None


async def test_the_next_endpoint_is_tried(server: EtcdServer) -> None:
    (nobody,) = free_ports(1)
    async with client(f"127.0.0.1:{nobody}", server.address) as etcd:
        assert await etcd.txn([], [Put("/e/a", b"1")]) is not None


async def test_no_etcd_is_an_error_that_says_what_to_check() -> None:
    (nobody,) = free_ports(1)
    with pytest.raises(UnavailableError, match=r"coordinator\.etcd\.endpoints"):
        async with client(f"127.0.0.1:{nobody}", timeout_s=1.0):
            pass


async def test_user_and_password(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as server:
        async with client(server.address):
            await _enable_users(server.address)
        async with client(server.address, username="root", password="secret") as etcd:
            assert await etcd.txn([], [Put("/u/a", b"1")]) is not None
            etcd._token = "gone"
            assert (await etcd.get("/u/a"))[1][0].value == b"1", "logs in again when its token has expired"
        with pytest.raises(RefusedError, match="authentication failed"):
            async with client(server.address, username="root", password="wrong"):
                pass


async def test_tls_with_client_certificates(tmp_path: Path) -> None:
    ca, cert, key = _certificates(tmp_path)
    flags = (f"--cert-file={cert}", f"--key-file={key}", f"--trusted-ca-file={ca}", "--client-cert-auth")
    with etcd_server(tmp_path / "etcd", *flags, scheme="https") as server:
        async with client(server.address, ca=ca, cert=cert, key=key) as etcd:
            assert await etcd.txn([], [Put("/s/a", b"1")]) is not None
        with pytest.raises(UnavailableError):
            async with client(server.address, timeout_s=1.0):
                pass


async def test_a_broken_watch_is_an_error_and_the_next_one_works(tmp_path: Path) -> None:
    with etcd_server(tmp_path) as server:
        async with client(server.address) as etcd:
            batches: asyncio.Queue[Batch] = asyncio.Queue()

            async def follow() -> None:
                async for batch in etcd.watch("/b/", 0):
                    batches.put_nowait(batch)

            following = asyncio.create_task(follow())
            assert (await asyncio.wait_for(batches.get(), 10)).changes == []
            os.kill(server.process.pid, signal.SIGKILL)
            with pytest.raises(UnavailableError):
                await asyncio.wait_for(following, 20)


async def _changes(etcd: Etcd, after: int, count: int) -> list[KeyValue]:
    found: list[KeyValue] = []
    async with asyncio.timeout(10), contextlib.aclosing(etcd.watch("/", after)) as batches:
        async for batch in batches:
            found += batch.changes
            if len(found) >= count:
                break
    return found


async def _enable_users(address: str) -> None:
    channel = aio_channel(address)
    auth = etcdrpc.AuthStub(channel)
    await auth.UserAdd(etcdrpc.AuthUserAddRequest(name="root", password="secret"), timeout=5)
    await auth.RoleAdd(etcdrpc.AuthRoleAddRequest(name="root"), timeout=5)
    await auth.UserGrantRole(etcdrpc.AuthUserGrantRoleRequest(user="root", role="root"), timeout=5)
    await auth.AuthEnable(etcdrpc.AuthEnableRequest(), timeout=5)
    await channel.close(None)


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A self-signed certificate for 127.0.0.1 that is its own authority."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    subject = ["-subj", "/CN=etcd", "-addext", "subjectAltName=IP:127.0.0.1"]
    usage = ["-addext", "extendedKeyUsage=serverAuth,clientAuth"]
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*argv, "-keyout", str(key), "-out", str(cert), *subject, *usage], check=True, capture_output=True)
    return cert, cert, key
