"""A whole mesh of real processes on one machine, with a door of the fault proxy in front of each server.

Servers listen on 127.0.1.1, their doors on 127.0.1.2 with the same ports; everybody is told of the doors. The ports are
a block below the kernel's ephemeral ones, so that nothing takes a port while its server is down.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from coordinator.xds.bootstrap import client_bootstrap
from inference.packaging import package
from meshkit.channel import aio_channel
from tests.chaos import models
from tests.chaos.processes import Process
from tests.chaos.proxy import Address, Proxy
from tests.processes import eventually
from tools.cli import placement
from tools.cli.target import Mesh as Target
from tools.cli.upload import push
from tools.local.etcd import etcd_binary
from tools.local.layout import to_toml
from tools.local.leftovers import end_tritons_of

INSIDE, DOOR = "127.0.1.1", "127.0.1.2"
BASES = range(20_000, 30_000, 100)
REPO = Path(__file__).parents[2]


@dataclass(frozen=True)
class Shape:
    """How many of each, and what differs from the defaults."""

    nodes: int = 3
    coordinators: int = 3
    etcd: int = 3
    agent: dict[str, Any] = field(default_factory=dict)
    """Settings of every agent."""
    triton: dict[str, Any] = field(default_factory=dict)
    """Settings of every agent's Triton."""
    coordinator: dict[str, Any] = field(default_factory=dict)
    """Settings of every coordinator."""


class Mesh:
    """The processes and the proxy. Made, started and used in one event loop."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.folder = folder
        self.shape = shape
        self.held, self.base = _claim()
        self.nodes = [f"node-{index + 1}" for index in range(shape.nodes)]
        self.coordinators = [f"coordinator-{index + 1}" for index in range(shape.coordinators)]
        self.members = [f"etcd-{index + 1}" for index in range(shape.etcd)]
        self.processes: dict[str, Process] = {}
        self.proxy = Proxy(self._pids)
        self._channels: dict[str, Any] = {}
        (folder / "config").mkdir(parents=True)
        for index, name in enumerate(self.members):
            self._add(name, _etcd_argv(self, index), (INSIDE, self.port(name)))
        for name in self.coordinators:
            self._add_role("coordinator", name, _coordinator_table(self, name))
        for name in self.nodes:
            self._add_role("agent", name, _agent_table(self, name))
        self._add_role("gateway", "gateway", _gateway_table(self), (INSIDE, self.port("gateway")))

    def port(self, name: str) -> int:
        """The port of a server; a node's is its Triton's gRPC port, and the two after it are its Triton's too."""
        kind, _, number = name.partition("-")
        first = {"gateway": 0, "etcd": 10, "peer": 20, "coordinator": 30, "node": 40}[kind]
        return self.base + 1 + first + (3 if kind == "node" else 1) * int(number or 0)

    def door(self, name: str) -> str:
        """Where others reach a server, host:port."""
        return f"{DOOR}:{self.port(name)}"

    def data_dir(self, name: str) -> Path:
        """The data of one process."""
        return self.folder / "data" / name

    @property
    def gateway(self) -> str:
        """Where the gateway listens, host:port."""
        return f"{INSIDE}:{self.port('gateway')}"

    @property
    def target(self) -> Target:
        """For the command line's own calls, which go to the coordinators themselves."""
        return Target(tuple(f"{INSIDE}:{self.port(name)}" for name in self.coordinators), self.gateway, None, None)

    async def start(self) -> None:
        """Opens the doors and starts everything; returns when all say that they run."""
        for name in (*self.members, *self.coordinators, *self.nodes):
            for more in range(3 if name in self.nodes else 1):
                port = self.port(name) + more
                await self.proxy.open(name, (DOOR, port), (INSIDE, port))
        for names in (self.members, self.coordinators, [*self.nodes, "gateway"]):
            for name in names:
                self.processes[name].launch()
            for name in names:
                await self.processes[name].running()

    async def deploy(
        self, name: str, version: str, source: str, replicas: int, ballast_bytes: int = 1024, *, copied: bool = False
    ) -> None:
        """Pushes a Python model and deploys it; does not wait for it.

        With `copied` it is deployed once more than one coordinator holds its files: they come to the second within a
        second, and what only one has goes away with it for as long as that is away.
        """
        place = self.folder / "models" / name / version
        (place / "1").mkdir(parents=True, exist_ok=True)
        (place / "config.pbtxt").write_text(models.CONFIG)
        (place / "1" / "model.py").write_text(source)
        (place / "1" / "ballast.bin").write_bytes(os.urandom(ballast_bytes))
        with package(place, name, version) as packed:
            await push(self.target, packed, lambda _: None)
            digests = list(packed.paths)
        if copied:
            await eventually(lambda: all(self._copies(digest) > 1 for digest in digests), what=f"copies of {name}")
        await placement.apply(self.target, name, version, replicas)

    def _copies(self, digest: str) -> int:
        """How many coordinators hold a blob."""
        places = (self.folder / "data" / name / "blobs" / digest for name in self.coordinators)
        return sum(place.exists() for place in places)

    async def placed(self, name: str, version: str, within_s: float) -> None:
        """Waits until a model is routed. Raises what the command line would."""
        await placement.wait_placed(self.target, name, version, within_s, lambda _: None)

    async def undeploy(self, name: str) -> None:
        """Removes a deployment."""
        await placement.remove(self.target, name)

    async def status(self, coordinator: str) -> cluster_pb2.Status:
        """What one coordinator says. Raises grpc.aio.AioRpcError."""
        if coordinator not in self._channels:
            self._channels[coordinator] = aio_channel(f"{INSIDE}:{self.port(coordinator)}")
        stub = cluster_pb2_grpc.ClusterServiceStub(self._channels[coordinator])
        answer: cluster_pb2.GetStatusResponse = await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=1.0)
        return answer.status

    def triton_pid(self, node: str) -> int:
        """The Triton that a node's agent has noted; 0 while there is none."""
        record = self.data_dir(node) / "triton.json"
        found = json.loads(record.read_text()) if record.exists() else {"pid": 0}
        return int(found.get("process", found)["pid"])

    def xds_bootstrap(self) -> Path:
        """Writes what GRPC_XDS_BOOTSTRAP names."""
        path = self.folder / "xds_bootstrap.json"
        doors = [self.door(name) for name in self.coordinators]
        path.write_text(json.dumps(client_bootstrap(doors, "chaos")))
        return path

    async def stop(self) -> None:
        """Ends everything that was started, whatever state it is in."""
        for channel in self._channels.values():
            await channel.close(None)
        for process in reversed(self.processes.values()):
            process.end()
        for name in self.nodes:
            end_tritons_of(self.data_dir(name))
        await self.proxy.close()
        self.held.close()

    def _pids(self) -> dict[int, str]:
        return {process.pid: name for name, process in self.processes.items() if process.alive}

    def _add(self, name: str, argv: list[str], listens: Address | None) -> None:
        fake_clock = name in (*self.coordinators, *self.nodes)
        self.processes[name] = Process(name, argv, self.folder / "run", listens, fake_clock=fake_clock)

    def _add_role(self, role: str, name: str, table: dict[str, Any], listens: Address | None = None) -> None:
        config = self.folder / "config" / f"{name}.toml"
        config.write_text(to_toml({role: table}))
        self._add(name, [sys.executable, "-m", "tools.cli.main", role, "--config", str(config)], listens)


def _claim() -> tuple[socket.socket, int]:
    """A block of ports that no other mesh of these tests has, and what holds it."""
    for base in BASES:
        with contextlib.suppress(OSError), contextlib.ExitStack() as undo:
            held = undo.enter_context(socket.socket())
            held.bind((INSIDE, base))
            held.listen(1)
            undo.pop_all()
            return held, base
    raise AssertionError("no free block of ports")


def _etcd_argv(mesh: Mesh, index: int) -> list[str]:
    name = mesh.members[index]
    client, peer = f"http://{INSIDE}:{mesh.port(name)}", f"http://{INSIDE}:{mesh.port(f'peer-{index + 1}')}"
    peers = [f"etcd-{n + 1}=http://{INSIDE}:{mesh.port(f'peer-{n + 1}')}" for n in range(mesh.shape.etcd)]
    return [
        etcd_binary(),
        f"--name={name}",
        f"--data-dir={mesh.data_dir(name)}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster={','.join(peers)}",
        "--log-level=warn",
        "--unsafe-no-fsync",  # processes are killed here, not machines
    ]


def _coordinator_table(mesh: Mesh, name: str) -> dict[str, Any]:
    return {
        "id": name,
        "host": INSIDE,
        "port": mesh.port(name),
        "advertise": mesh.door(name),
        "data_dir": str(mesh.data_dir(name)),
        "etcd": {"endpoints": [mesh.door(member) for member in mesh.members]},
        **mesh.shape.coordinator,
    }


def _agent_table(mesh: Mesh, name: str) -> dict[str, Any]:
    port = mesh.port(name)
    return {
        "node_id": name,
        "address": DOOR,
        "coordinators": [mesh.door(coordinator) for coordinator in mesh.coordinators],
        "data_dir": str(mesh.data_dir(name)),
        "memory_bytes": 1 << 30,
        "cpu_cores": 1.0,
        "drain_s": 5.0,
        **mesh.shape.agent,
        "triton": {
            "listen": INSIDE,
            "grpc_port": port,
            "http_port": port + 1,
            "metrics_port": port + 2,
            **mesh.shape.triton,
        },
    }


def _gateway_table(mesh: Mesh) -> dict[str, Any]:
    return {
        "id": "gateway",
        "host": INSIDE,
        "port": mesh.port("gateway"),
        "coordinators": [mesh.door(coordinator) for coordinator in mesh.coordinators],
        "data_dir": str(mesh.data_dir("gateway")),
        "concurrency": 1,
    }
