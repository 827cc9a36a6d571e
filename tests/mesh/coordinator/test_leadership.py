"""Leadership across processes: killed leaders are replaced, deposed ones cannot write."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from coordinator import keys
from coordinator.etcd import Created, Delete, Etcd, Put
from coordinator.settings import EtcdSettings
from meshkit.process import ProcessId
from tests.mesh.coordinator.conftest import RunningCoordinator, coordinator
from tests.processes import EtcdServer, etcd_server, eventually, free_ports, process

CONFIG = """
[coordinator]
id = "{name}"
data_dir = "{data}"
port = {port}
leader_ttl_s = 2
[coordinator.etcd]
endpoints = ["{etcd}"]
"""


async def test_a_killed_leader_is_replaced_and_its_writes_are_fenced(etcd: EtcdServer, tmp_path: Path) -> None:
    config = tmp_path / "c2.toml"
    (port,) = free_ports(1)
    config.write_text(CONFIG.format(name="c2", data=tmp_path / "c2", port=port, etcd=etcd.address))
    argv = [sys.executable, "-m", "tools.cli.main", "coordinator", "--config", str(config)]
    client = Etcd(EtcdSettings(endpoints=(etcd.address,)))
    with process(argv, tmp_path / "c2.log") as killed:
        await eventually(lambda: _holder(client, "c2"), what="c2 leads")
        _, (held,) = await client.get(keys.LEADER)
        async with coordinator(etcd, tmp_path, "c1") as c1:
            assert [c.id for c in (await c1.status()).coordinators] == ["c1", "c2"]
            os.kill(killed.pid, signal.SIGKILL)
            await eventually(lambda: _leads(c1, "c1"), what="c1 leads")
            fence = Created(keys.LEADER, held.create_revision)
            assert await client.txn([fence], [Put(keys.assignment("n1"), b"{}")]) is None
    await client.close()


async def test_a_leader_that_stops_hands_over_at_once(etcd: EtcdServer, tmp_path: Path) -> None:
    async with coordinator(etcd, tmp_path, "c1", leader_ttl_s=60) as c1:
        async with coordinator(etcd, tmp_path, "c2", leader_ttl_s=60):
            pass
        assert await _leads(c1, "c1")
    async with coordinator(etcd, tmp_path, "c2", leader_ttl_s=60) as c2:
        assert await _leads(c2, "c2"), "nobody waits for a lease of 60 s"


async def _holder(client: Etcd, name: str) -> bool:
    _, (held,) = await client.get(keys.LEADER)
    return held.value == name.encode()


async def _leads(c1: RunningCoordinator, name: str) -> bool:
    return [c.id for c in (await c1.status()).coordinators if c.leader] == [name]


async def test_a_coordinator_waits_for_etcd_and_freezes_on_what_it_cannot_read(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    early = EtcdServer(f"127.0.0.1:{port}", ProcessId(0, 0.0))
    starting = asyncio.create_task(_frozen_and_back(early, tmp_path))
    await asyncio.sleep(0)
    with etcd_server(tmp_path / "etcd", port=port):
        await starting


async def _frozen_and_back(server: EtcdServer, folder: Path) -> None:
    client = Etcd(EtcdSettings(endpoints=(server.address,)))
    async with coordinator(server, folder, "c1") as c1:
        await client.txn([], [Put(keys.deployment("m"), b"{damaged")])
        frozen = await eventually(lambda: _frozen(c1), what="frozen")
        assert keys.deployment("m") in frozen
        await client.txn([], [Delete(keys.deployment("m"))])
        await eventually(lambda: _live(c1), what="live again")
    await client.close()


async def _frozen(c1: RunningCoordinator) -> str:
    return (await c1.status()).frozen


async def _live(c1: RunningCoordinator) -> bool:
    return not (await c1.status()).frozen
