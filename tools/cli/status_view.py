"""A mesh's status as JSON and as tables. Pure: messages in, values out."""

from __future__ import annotations

import ipaddress
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from tools.cli.output import human_bytes
from tools.cli.plain import enum_name, plain
from tools.cli.target import Mesh

_NODE_STATE = membership_pb2.NodeState.DESCRIPTOR
_MODEL_STATE = membership_pb2.ModelState.DESCRIPTOR
_TRITON_STATE = membership_pb2.TritonState.DESCRIPTOR
_STYLES = {"READY": "green", "DEAD": "bold red", "SUSPECT": "yellow", "FAILED": "bold red", "DRAINING": "yellow"}


def status_json(mesh: Mesh, status: cluster_pb2.Status) -> dict[str, Any]:
    """The documented shape of `aimesh status --json`; keys are only ever added."""
    return {
        "cluster": {
            "state_dir": str(mesh.state_dir) if mesh.state_dir else None,
            "gateway": mesh.gateway,
            "coordinators": [plain(coordinator) for coordinator in status.coordinators],
            "coordinators_missing": _missing_coordinators(mesh, status),
            "etcd": [
                {"address": address, "pid": _etcd_pid(mesh, address)} for address in sorted(status.etcd_endpoints)
            ],
            "revision": status.revision,
            "frozen": status.frozen,
            "braked": status.braked,
            "behind_s": status.behind.ToMilliseconds() / 1000,
            "gateway_pid": _pid(mesh, "gateway"),
            "supervisor_pid": mesh.record.supervisor.pid if mesh.record and mesh.record.supervisor else None,
        },
        "nodes": [_node_json(entry) for entry in status.nodes],
        "deployments": [
            {"name": entry.deployment.name, **plain(target)} for entry in status.deployments for target in entry.targets
        ],
        "xds_clients": [plain(client) for client in status.xds_clients],
    }


def status_tables(mesh: Mesh, status: cluster_pb2.Status) -> RenderableType:
    """The same for people."""
    tables = [nodes_table(status), deployments_table(status)]
    missing = rejections_table(status)
    if missing.row_count:
        tables.append(missing)
    parts: list[RenderableType] = [_headline(mesh, status)]
    for table in tables:
        parts += [Text(""), table]
    return Group(*parts)


def nodes_table(status: cluster_pb2.Status) -> Table:
    """One row a node: state, use of CPU, memory and GPUs, and what runs there."""
    table = _table("Nodes", "node", "state", "epoch", "triton", "cpu", "memory", "gpus", "models")
    for entry in status.nodes:
        node, load = entry.node, entry.load
        state = enum_name(_NODE_STATE, node.state)
        table.add_row(
            node.id,
            _coloured(state, _state_detail(entry, state)),
            str(node.epoch),
            _triton_address(node),
            f"{load.cpu_utilization:.0%} of {node.capacity.cpu_cores:g}" if entry.HasField("load") else "-",
            _used(load.memory_used_bytes, node.capacity.memory_bytes) if entry.HasField("load") else "-",
            _gpus(entry),
            Text("\n").join(_model_line(model) for model in node.report.models) or "-",
        )
    return table


def deployments_table(status: cluster_pb2.Status) -> Table:
    """One row a version that is deployed."""
    if not status.deployments:
        return _table("Deployments", Text("none yet: aimesh deploy NAME --replicas N", "dim"))
    table = _table("Deployments", "model", "version", "ready", "weight", "nodes")
    for entry in status.deployments:
        weights = {target.version: target.weight for target in entry.deployment.targets}
        for target in entry.targets:
            style = "green" if target.ready >= target.wanted else "yellow"
            table.add_row(
                entry.deployment.name,
                target.version,
                Text(f"{target.ready} of {target.wanted}", style),
                str(weights.get(target.version, 0)),
                ", ".join(target.nodes) or "-",
            )
    return table


def routes_table(mesh: Mesh, status: cluster_pb2.Status) -> Table:
    """One row a model that answers: how clients reach it, and which Tritons serve it."""
    table = _table("Routes", "model", "any client, at the gateway", "gRPC without a proxy", "endpoints")
    address = {entry.node.id: _triton_address(entry.node) for entry in status.nodes}
    for entry in status.deployments:
        name = entry.deployment.name
        endpoints = [address.get(node, node) for target in entry.targets for node in target.nodes]
        table.add_row(name, f"{mesh.gateway} model_name={name}", f"xds:///{name}", "\n".join(endpoints) or "-")
    return table


def rejections_table(status: cluster_pb2.Status) -> Table:
    """Why missing replicas are missing: one row for each node that could not take one."""
    table = _table("Replicas that found no place", "model", "missing", "node", "limit", "why")
    for entry in status.deployments:
        for target in entry.targets:
            add_rejections(table, entry.deployment.name, target)
    return table


def add_rejections(table: Table, name: str, target: routing_pb2.TargetStatus) -> None:
    """Adds the rows of one target."""
    missing = target.wanted - len(target.nodes) or "-"  # none: they fail, or are on their way elsewhere
    for rejection in target.rejections:
        table.add_row(f"{name}:{target.version}", str(missing), rejection.node, rejection.limit, rejection.message)


def _headline(mesh: Mesh, status: cluster_pb2.Status) -> Text:
    lines = [Text(f"mesh         {mesh.state_dir or 'remote'}", "bold")]
    lines += _warnings(status)
    for coordinator in status.coordinators:
        lead = ", leads" if coordinator.leader else ""
        lines.append(Text(f"coordinator  {coordinator.address}  {coordinator.id} (pid {coordinator.pid}{lead})"))
    lines += [Text(f"coordinator  {address}  MISSING", "bold red") for address in _missing_coordinators(mesh, status)]
    if _missing_coordinators(mesh, status):
        lines.append(Text("             stopped, cut off from etcd, or known to the mesh by another address", "dim"))
    etcd = sorted(status.etcd_endpoints)
    lines += [Text(f"etcd         {_with_pid(address, _etcd_pid(mesh, address))}") for address in etcd]
    lines.append(Text(f"gateway      {_with_pid(mesh.gateway or 'unknown', _pid(mesh, 'gateway'))}"))
    nacks = [sub.nack for client in status.xds_clients for sub in client.subscriptions if sub.nack]
    lines.append(Text(f"xds clients  {len(status.xds_clients)} at the coordinator that was asked"))
    lines += [Text(f"refused      {nack}", "bold red") for nack in nacks]
    return Text("\n").join(lines)


def _missing_coordinators(mesh: Mesh, status: cluster_pb2.Status) -> list[str]:
    """Addresses that this command was given and no coordinator with a lease has.

    Only coordinators' own form is compared, IP:port: a host name may stand for any of them.
    """
    own = {coordinator.address for coordinator in status.coordinators}
    return sorted(address for address in set(mesh.coordinators) - own if _is_ip(address.rpartition(":")[0]))


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return True


def _warnings(status: cluster_pb2.Status) -> list[Text]:
    """What keeps this coordinator from working as it should, each with what to do."""
    found = []
    if status.frozen:
        found.append(Text(f"FROZEN       {status.frozen}", "bold red"))
        found.append(Text("             routes stay as they are, nothing is decided; bring etcd back", "dim"))
    if status.braked:
        found.append(Text(f"BRAKED       {status.braked}", "bold red"))
        found.append(
            Text(
                "             their routes stay, nothing is moved; bring them back, or: aimesh nodes forget NODE", "dim"
            )
        )
    if status.HasField("behind") and not status.frozen:
        found.append(
            Text(f"BEHIND       etcd has said nothing for {status.behind.ToMilliseconds() / 1000:.1f} s", "yellow")
        )
        found.append(Text("             what is shown may be old; look at etcd and the network to it", "dim"))
    return found


def _node_json(entry: cluster_pb2.NodeStatus) -> dict[str, Any]:
    node = entry.node
    return {
        "id": node.id,
        "state": enum_name(_NODE_STATE, node.state),
        "drained": entry.drained,
        "replicas": entry.replicas,
        "probe": enum_name(membership_pb2.Probe.DESCRIPTOR, node.probe) if node.probe else "",
        "epoch": node.epoch,
        "address": node.address,
        "triton": _triton_address(node),
        "pid": node.pid,
        "triton_pid": node.report.triton.pid,
        "capacity": plain(node.capacity),
        "load": plain(entry.load),
        "models": [
            {
                "name": model.name,
                "version": model.version,
                "state": enum_name(_MODEL_STATE, model.state),
                "message": model.message,
            }
            for model in node.report.models
        ],
        "triton_state": enum_name(_TRITON_STATE, node.report.triton.state),
        "triton_message": node.report.triton.message,
        "labels": dict(node.labels),
        "coordinator": node.coordinator_id,
    }


def _state_detail(entry: cluster_pb2.NodeStatus, state: str) -> str:
    """What a person needs to know beside the state."""
    if state == "DRAINING" and entry.drained:
        return f"{entry.replicas} to move" if entry.replicas else "empty"
    if state in ("SUSPECT", "DEAD") and entry.node.probe:
        said = enum_name(membership_pb2.Probe.DESCRIPTOR, entry.node.probe).lower()
        return f"agent silent, Triton {said}" if state == "SUSPECT" else f"Triton {said}"
    return entry.node.report.triton.message if state in ("JOINING", "READY") else ""


def _triton_address(node: membership_pb2.Node) -> str:
    return f"{node.address}:{node.report.triton.grpc_port}"


def _gpus(entry: cluster_pb2.NodeStatus) -> str:
    capacity, used = entry.node.capacity, {gpu.index: gpu for gpu in entry.load.gpus}
    if capacity.gpu_error:
        return f"unreadable: {capacity.gpu_error}"
    lines = []
    for gpu in capacity.gpus:
        load = used.get(gpu.index, membership_pb2.GpuLoad())
        lines.append(f"{gpu.name} {load.utilization:.0%} {_used(load.memory_used_bytes, gpu.memory_bytes)}")
    return "\n".join(lines) or "none"


def _model_line(model: membership_pb2.ModelStatus) -> Text:
    state = enum_name(_MODEL_STATE, model.state)
    detail = f" {model.bytes_done / model.bytes_total:.0%}" if state == "FETCHING" and model.bytes_total else ""
    shown = _coloured(state + detail, model.message if state == "FAILED" else "", style=_STYLES.get(state, "cyan"))
    return Text.assemble(f"{model.name}:{model.version} ", shown)


def _coloured(state: str, message: str, style: str | None = None) -> Text:
    return Text(state + (f": {message}" if message else ""), style or _STYLES.get(state, "cyan"))


def _used(used: int, total: int) -> str:
    return f"{human_bytes(used)} of {human_bytes(total)}"


def _table(title: str, *columns: str | Text) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", header_style="dim", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _pid(mesh: Mesh, name: str) -> int | None:
    process = mesh.record.processes.get(name) if mesh.record else None
    return process.pid if process else None


def _etcd_pid(mesh: Mesh, address: str) -> int | None:
    layout = mesh.record.layout if mesh.record else None
    return _pid(mesh, layout.etcd_names[layout.etcd.index(address)]) if layout and address in layout.etcd else None


def _with_pid(address: str, pid: int | None) -> str:
    return f"{address} (pid {pid})" if pid else address
