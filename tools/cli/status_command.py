"""`aimesh status`: once, or again at each change."""

from __future__ import annotations

import json
import sys
from contextlib import suppress

from rich.live import Live

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from tools.cli.client import CALL_TIMEOUT_S, connect, run
from tools.cli.output import console, print_json
from tools.cli.status_view import status_json, status_tables
from tools.cli.target import Mesh


async def get_status(mesh: Mesh) -> cluster_pb2.Status:
    """The mesh's state, from the first coordinator that answers."""
    async with connect(mesh, "coordinator") as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        answer = await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=CALL_TIMEOUT_S)
    return answer.status


def show(mesh: Mesh, *, as_json: bool) -> None:
    """Prints the state once."""
    status = run(get_status(mesh))
    if as_json:
        print_json(status_json(mesh, status))
    else:
        console().print(status_tables(mesh, status))


def watch(mesh: Mesh, *, as_json: bool) -> None:
    """Shows every state until Ctrl-C; as JSON, one document a line."""
    with suppress(KeyboardInterrupt):
        run(_watch_json(mesh) if as_json else _watch_tables(mesh))


async def _watch_tables(mesh: Mesh) -> None:
    async with connect(mesh, "coordinator") as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        with Live(console=console(), auto_refresh=False, vertical_overflow="visible") as live:
            async for answer in stub.WatchStatus(cluster_pb2.WatchStatusRequest()):
                live.update(status_tables(mesh, answer.status), refresh=True)


async def _watch_json(mesh: Mesh) -> None:
    async with connect(mesh, "coordinator") as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        async for answer in stub.WatchStatus(cluster_pb2.WatchStatusRequest()):
            sys.stdout.write(json.dumps(status_json(mesh, answer.status)) + "\n")
            sys.stdout.flush()
