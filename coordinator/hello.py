"""What an agent says of itself when it joins: checked, and made into a node."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping

from aimesh.membership.v1 import membership_pb2
from meshkit.errors import InvalidInputError

_NODE_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_MOST_PORT = 65535
_MOST_PAIRS = 128
_MOST_PAIR = 512
"""Characters of a label's name and value together: every coordinator holds them of every node."""
_MOST_TEXT = 2000
"""Characters kept of a model's or a task's message: etcd takes 1.5 MiB a write, and a node is written twice at once."""


def check_hello(hello: membership_pb2.Hello) -> None:
    """Raises InvalidInputError naming the field that is missing or malformed."""
    check_node_id(hello.node_id)
    for field in ("instance_id", "address"):
        if not getattr(hello, field):
            raise InvalidInputError(f"node {hello.node_id}: hello.{field} is empty")
    try:
        ipaddress.ip_address(hello.address)
    except ValueError:
        raise InvalidInputError(
            f"node {hello.node_id}: address {hello.address!r} is no IP address",
            hint="set agent.address to the IP at which clients reach this machine; routes carry no host names",
        ) from None
    if not hello.capacity.memory_bytes:
        raise InvalidInputError(f"node {hello.node_id}: hello.capacity.memory_bytes is 0")
    if hello.port > _MOST_PORT:
        raise InvalidInputError(f"node {hello.node_id}: hello.port is {hello.port}, which is no port")
    for field, pairs in (("labels", hello.labels), ("runtimes", hello.runtimes)):
        _check_pairs(hello.node_id, field, pairs)
    check_report(hello.node_id, hello.report)


def check_report(node_id: str, report: membership_pb2.ModelReport) -> None:
    """Raises InvalidInputError for a port that does not exist: with one such endpoint a client refuses all of them."""
    for field in ("grpc_port", "http_port", "metrics_port"):
        if (port := getattr(report.triton, field)) > _MOST_PORT:
            raise InvalidInputError(f"node {node_id}: report.triton.{field} is {port}, which is no port")


def check_node_id(node_id: str) -> None:
    """Raises InvalidInputError when no node may be called so."""
    if not _NODE_ID.fullmatch(node_id):
        raise InvalidInputError(
            f"node_id {node_id!r} is not allowed",
            hint="use up to 63 lower-case letters, digits and '-', starting with a letter or digit",
        )


def _check_pairs(node_id: str, field: str, pairs: Mapping[str, str]) -> None:
    if len(pairs) > _MOST_PAIRS:
        raise InvalidInputError(f"node {node_id}: hello.{field} has {len(pairs)} entries, and may have {_MOST_PAIRS}")
    for name, value in pairs.items():
        if not name or len(name) + len(value) > _MOST_PAIR:
            raise InvalidInputError(
                f"node {node_id}: hello.{field} has the name {name[:40]!r} with a value of {len(value)} characters",
                hint=f"a name has one character at least, and name and value {_MOST_PAIR} together at most",
            )


def node_of(hello: membership_pb2.Hello, epoch: int, coordinator_id: str) -> membership_pb2.Node:
    """The node as it is written at its join: READY only when its Triton is already."""
    ready = hello.report.triton.state == membership_pb2.TRITON_STATE_READY
    return membership_pb2.Node(
        id=hello.node_id,
        instance_id=hello.instance_id,
        epoch=epoch,
        state=membership_pb2.NODE_STATE_READY if ready else membership_pb2.NODE_STATE_JOINING,
        address=hello.address,
        port=hello.port,
        pid=hello.pid,
        agent_version=hello.agent_version,
        capacity=hello.capacity,
        labels=hello.labels,
        runtimes=hello.runtimes,
        report=durable(hello.report),
        coordinator_id=coordinator_id,
    )


def durable(report: membership_pb2.ModelReport) -> membership_pb2.ModelReport:
    """The report without the progress of downloads, which changes too often for etcd, and with no endless message."""
    kept = membership_pb2.ModelReport()
    kept.CopyFrom(report)
    for model in kept.models:
        model.ClearField("bytes_done")
        if len(model.message) > _MOST_TEXT:
            model.message = model.message[:_MOST_TEXT]
    for task in kept.tasks:
        if len(task.message) > _MOST_TEXT:
            task.message = task.message[:_MOST_TEXT]
    return kept
