"""A mesh of the parts of this room only: a real XdsServer fed with hand-made states, real Tritons, a real Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import ssl
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State
from coordinator.xds.bootstrap import client_bootstrap
from coordinator.xds.compile import compile_snapshot
from coordinator.xds.loads import SERVICE_NAME as LRS
from coordinator.xds.loads import GatewayLoads
from coordinator.xds.server import SERVICE_NAME, XdsServer
from meshkit.auth import AuthInterceptor, identify
from meshkit.process import ProcessId, end_group
from meshkit.server import MeshServer
from meshkit.tls import TlsSettings, server_credentials
from tests.mesh.xds.triton import RunningTriton
from tests.processes import free_ports
from tools import gateway

Result = TypeVar("Result")
VERSION = "1.0.0"


class Coordinator:
    """An XdsServer on a thread of its own, so that synchronous clients can be tested against it."""

    def __init__(self, port: int = 0, tls: TlsSettings | None = None) -> None:
        self._tls = tls or TlsSettings()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.xds = XdsServer()
        self.loads = GatewayLoads()
        self._server = self._run(self._start(port))
        self.address = f"127.0.0.1:{self._server.port}"

    def publish(self, state: State) -> None:
        """Compiles and publishes."""

        async def publish() -> None:
            self.xds.publish(compile_snapshot(state, secure=self._tls.on))

        self._run(publish())

    def clients(self) -> list[cluster_pb2.XdsClient]:
        async def clients() -> list[cluster_pb2.XdsClient]:
            return self.xds.clients()

        return self._run(clients())

    def call(self, what: Callable[..., Result], *args: object) -> Result:
        """Calls a function on the server's thread, to which all its parts belong."""

        async def call() -> Result:
            return what(*args)

        return self._run(call())

    def stop(self) -> None:
        async def stop() -> None:
            self.xds.close()
            self.loads.close()
            await self._server.stop(1)

        self._run(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _start(self, port: int) -> MeshServer:
        guards = [AuthInterceptor(functools.partial(identify, tls=True, check_key=None))] if self._tls.on else []
        credentials = server_credentials(self._tls)
        server = MeshServer(f"127.0.0.1:{port}", [SERVICE_NAME, LRS], credentials=credentials, interceptors=guards)
        self.xds.add_to(server.grpc)
        self.loads.add_to(server.grpc)
        await server.start()
        return server

    def _run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10)


@contextlib.contextmanager
def coordinator(port: int = 0, tls: TlsSettings | None = None) -> Iterator[Coordinator]:
    running = Coordinator(port, tls)
    try:
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def envoy(folder: Path, coordinators: Sequence[str], **settings: Any) -> Iterator[str]:
    """A gateway that is fully configured; its host:port."""
    (port,) = free_ports(1)
    chosen = gateway.GatewaySettings(
        data_dir=folder, coordinators=tuple(coordinators), port=port, concurrency=1, **settings
    )
    config = gateway.write_bootstrap(chosen)
    with (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            gateway.command(chosen, config), stdout=log, stderr=log, start_new_session=True, cwd=folder
        )
    context = ssl.create_default_context(cafile=chosen.tls.ca) if chosen.tls.on else None
    url = f"{'https' if context else 'http'}://127.0.0.1:{port}/healthz"
    try:
        eventually(lambda: get(url, context=context)[0] == 200, "Envoy has its routes")
        yield f"127.0.0.1:{port}"
    finally:
        end_group(ProcessId.of(process.pid))
        process.wait()


def write_client_bootstrap(path: Path, coordinators: Sequence[str], tls: TlsSettings | None = None) -> Path:
    path.write_text(json.dumps(client_bootstrap(coordinators, "tests", tls)))
    return path


def get(url: str, body: bytes | None = None, context: ssl.SSLContext | None = None) -> tuple[int, str]:
    """(status, body) of a GET, or of a POST when there is a body; status 0 when there is no answer."""
    handlers = [urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)]
    try:
        with urllib.request.build_opener(*handlers).open(url, data=body, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()
    except OSError:
        return 0, ""


def eventually(condition: Callable[[], bool], what: str, patience_s: float = 15.0) -> None:
    """Polls until the condition holds; fails after patience_s seconds."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.02)


def node(
    number: int,
    triton: RunningTriton | None,
    models: Mapping[str, int],
    message: str = "",
    state: int = membership_pb2.NODE_STATE_READY,
) -> membership_pb2.Node:
    """agent-<number> whose report says that each model is in the given ModelState."""
    report = membership_pb2.ModelReport(
        triton=membership_pb2.Triton(
            grpc_port=triton.grpc_port if triton else 1, http_port=triton.http_port if triton else 1
        ),
        models=[
            membership_pb2.ModelStatus(name=name, version=VERSION, state=each, message=message)  # type: ignore[arg-type]
            for name, each in models.items()
        ],
    )
    return membership_pb2.Node(id=f"agent-{number}", address="127.0.0.1", state=state, report=report)  # type: ignore[arg-type]


def deployment(name: str, replicas: int = 2) -> routing_pb2.Deployment:
    target = routing_pb2.Target(version=VERSION, replicas=replicas, weight=100)
    return routing_pb2.Deployment(name=name, targets=[target])


def state_of(
    revision: int,
    nodes: Sequence[membership_pb2.Node],
    deployments: Sequence[routing_pb2.Deployment],
    recorded: Sequence[str] = (),
    coordinators: Sequence[str] = (),
) -> State:
    """A state in which each node is assigned what it reports."""
    names = {*recorded, *(each.name for each in deployments)}
    return State(
        revision=revision,
        nodes={each.id: each for each in nodes},
        members={each.id: each for each in nodes},
        versions={(name, VERSION): registry_pb2.ModelVersion(name=name, version=VERSION) for name in names},
        deployments={each.name: each for each in deployments},
        assignments={each.id: frozenset((model.name, model.version) for model in each.report.models) for each in nodes},
        coordinators={
            f"c{index}": cluster_pb2.Coordinator(id=f"c{index}", address=address)
            for index, address in enumerate(coordinators)
        },
    )
