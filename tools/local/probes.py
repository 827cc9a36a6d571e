"""Says which parts of a mesh answer: probes at the edge, one pure judgement."""

from __future__ import annotations

import asyncio
import http.client
import json
import ssl
from collections.abc import Mapping, Sequence

import grpc.aio

from aimesh.cluster.v1 import cluster_pb2, cluster_pb2_grpc
from aimesh.membership.v1 import membership_pb2
from meshkit.credentials import ClientCredentials
from tools.local.layout import Layout
from tools.local.pki import own_credentials
from tools.local.record import MeshRecord, Part

PROBE_TIMEOUT_S = 2.0


async def etcd_answers(layout: Layout) -> bool:
    """Whether any member of etcd says that the cluster is healthy."""
    return any(await _etcd_members(layout))


async def probe(record: MeshRecord) -> dict[str, Part]:
    """How each part is now."""
    layout = record.layout
    etcd, gateway, status = await asyncio.gather(_etcd_members(layout), _gateway_answers(layout), _any_status(layout))
    return judge(record, status, etcd=etcd, gateway=gateway)


async def _etcd_members(layout: Layout) -> list[bool]:
    """Which members say that they are healthy, which takes a leader, in the layout's order."""
    answers = await asyncio.gather(*(asyncio.to_thread(_get, layout, address, "/health") for address in layout.etcd))
    return [status == 200 and json.loads(body).get("health") == "true" for status, body in answers]


async def _gateway_answers(layout: Layout) -> bool:
    status, _ = await asyncio.to_thread(_get, layout, layout.gateway, "/healthz")
    return status == 200


async def _any_status(layout: Layout) -> cluster_pb2.Status | None:
    """What the coordinators say, with the gateways that each of them configures; None when none answers."""
    found = [status for status in await asyncio.gather(*(_status(layout, at) for at in layout.coordinators)) if status]
    if not found:
        return None
    merged = max(found, key=lambda status: (not status.frozen, status.revision))
    merged.xds_clients.extend(client for status in found if status is not merged for client in status.xds_clients)
    return merged


async def _status(layout: Layout, address: str) -> cluster_pb2.Status | None:
    async with own_credentials(layout).coordinator_channel(address) as channel:
        stub = cluster_pb2_grpc.ClusterServiceStub(channel)
        try:
            answer = await stub.GetStatus(cluster_pb2.GetStatusRequest(), timeout=PROBE_TIMEOUT_S)
        except grpc.aio.AioRpcError:
            return None
    return answer.status


def judge(
    record: MeshRecord, status: cluster_pb2.Status | None, *, etcd: Sequence[bool], gateway: bool
) -> dict[str, Part]:
    """How each part is, from what the probes saw; `etcd` has an entry for each member. Pure.

    What etcd still holds of processes that were killed does not count: the pids must be those of this mesh.
    """
    status = status or cluster_pb2.Status()
    pids = {name: process.pid for name, process in record.processes.items()}
    layout = record.layout
    parts = {name: _part(healthy) for name, healthy in zip(layout.etcd_names, etcd, strict=True)}
    parts |= {name: _coordinator_part(status, pids.get(name)) for name in layout.coordinator_names}
    parts["gateway"] = _part(gateway and _has_routes(status), "no routes yet" if gateway else "")
    nodes = {entry.node.id: entry.node for entry in status.nodes if entry.node.pid == pids.get(entry.node.id)}
    for index in range(layout.nodes):
        name = layout.node_id(index)
        parts[name] = _node_part(nodes, name)
    return parts


def _coordinator_part(status: cluster_pb2.Status, pid: int | None) -> Part:
    """Ready when it is registered and somebody leads."""
    registered = any(each.pid == pid for each in status.coordinators)
    leads = any(each.leader for each in status.coordinators)
    return _part(registered and leads and not status.frozen, status.frozen or ("no leader yet" if registered else ""))


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


def _get(layout: Layout, address: str, path: str) -> tuple[int, bytes]:
    """The status and body of a GET; status 0 when nothing answers. No proxy is ever asked."""
    connection = _connection(layout, address)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def _connection(layout: Layout, address: str) -> http.client.HTTPConnection:
    if not layout.tls:
        return http.client.HTTPConnection(address, timeout=PROBE_TIMEOUT_S)
    member = ClientCredentials.from_directory(layout.tls_dir / layout.etcd_names[0])  # etcd takes no administrator's
    assert member.cert is not None
    context = ssl.create_default_context(cafile=member.ca)
    context.load_cert_chain(member.cert, member.key)
    return http.client.HTTPSConnection(address, timeout=PROBE_TIMEOUT_S, context=context)
