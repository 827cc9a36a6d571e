"""Says which parts of a mesh answer: probes at the edge, one pure judgement."""

from __future__ import annotations

import asyncio
import http.client
import json
from collections.abc import Mapping

import grpc.aio

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from meshkit.channel import aio_channel
from tools.local.layout import Layout
from tools.local.record import MeshRecord, Part

PROBE_TIMEOUT_S = 2.0


async def etcd_answers(layout: Layout) -> bool:
    """Whether etcd says that it is healthy."""
    status, body = await asyncio.to_thread(_get, layout.etcd, "/health")
    return status == 200 and json.loads(body).get("health") == "true"


async def gateway_answers(layout: Layout) -> bool:
    """Whether the gateway serves."""
    status, _ = await asyncio.to_thread(_get, layout.gateway, "/healthz")
    return status == 200


async def cluster_status(layout: Layout) -> cluster_pb2.Status | None:
    """What the coordinator says; None when it does not answer."""
    async with aio_channel(layout.coordinators[0]) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        try:
            answer = await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
    return answer.status


async def probe(record: MeshRecord) -> dict[str, Part]:
    """How each part is now."""
    layout = record.layout
    etcd, gateway, status = await asyncio.gather(etcd_answers(layout), gateway_answers(layout), cluster_status(layout))
    return judge(record, status, etcd=etcd, gateway=gateway)


def judge(record: MeshRecord, status: cluster_pb2.Status | None, *, etcd: bool, gateway: bool) -> dict[str, Part]:
    """How each part is, from what the probes saw. Pure.

    What etcd still holds of processes that were killed does not count: the pids must be those of this mesh.
    """
    status = status or cluster_pb2.Status()
    pids = {name: process.pid for name, process in record.processes.items()}
    coordinators = [each for each in status.coordinators if each.pid == pids.get("coordinator")]
    leads = any(each.leader for each in coordinators)
    parts = {
        "etcd": _part(etcd),
        "coordinator": _part(leads, status.frozen or ("no leader yet" if coordinators else "")),
        "gateway": _part(gateway and _has_routes(status), "no routes yet" if gateway else ""),
    }
    nodes = {entry.node.id: entry.node for entry in status.nodes if entry.node.pid == pids.get(entry.node.id)}
    for index in range(record.layout.nodes):
        name = record.layout.node_id(index)
        parts[name] = _node_part(nodes, name)
    return parts


def _node_part(nodes: Mapping[str, membership_pb2.Node], name: str) -> Part:
    if name not in nodes:
        return Part("starting")
    node = nodes[name]
    if node.report.triton.state == membership_pb2.TRITON_STATE_CRASH_LOOP:
        return Part("failed", node.report.triton.message or "Triton dies again and again")
    return _part(node.state == membership_pb2.NODE_STATE_READY, node.report.triton.message or "Triton starts")


def _has_routes(status: cluster_pb2.Status) -> bool:
    """Whether an Envoy has acknowledged its routes."""
    return any(
        subscription.type == "rds" and subscription.acked_version
        for client in status.xds_clients
        for subscription in client.subscriptions
    )


def _part(ready: bool, message: str = "") -> Part:
    return Part("ready") if ready else Part("starting", message)


def _get(address: str, path: str) -> tuple[int, bytes]:
    """The status and body of a GET; status 0 when nothing answers. No proxy is ever asked."""
    connection = http.client.HTTPConnection(address, timeout=PROBE_TIMEOUT_S)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()
