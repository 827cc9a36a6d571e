"""Where things lie in etcd, and their form there: proto3 JSON, so that `etcdctl get` is readable."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

Parsed = TypeVar("Parsed", bound=Message)
ROOT = "/aimesh/v1/"
LEADER = f"{ROOT}election/leader"


def node(node_id: str) -> str:
    """The node while its lease lives."""
    return f"{ROOT}nodes/{node_id}"


def member(node_id: str) -> str:
    """The node as it joined, until it leaves: what is left to see of it when it is dead."""
    return f"{ROOT}members/{node_id}"


def version(name: str, version: str) -> str:
    """A model version."""
    return f"{ROOT}models/{name}/{version}"


def deployment(name: str) -> str:
    """A deployment."""
    return f"{ROOT}deployments/{name}"


def assignment(node_id: str) -> str:
    """What a node is to run."""
    return f"{ROOT}assignments/{node_id}"


def coordinator(coordinator_id: str) -> str:
    """A coordinator while its lease lives."""
    return f"{ROOT}coordinators/{coordinator_id}"


def encode(message: Message) -> bytes:
    """The message as JSON, the same bytes for the same content."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None, sort_keys=True).encode()


def parse(value: bytes, into: Parsed) -> Parsed:
    """Reads JSON that `encode` wrote, also by a newer version with fields that this one does not know.

    Raises google.protobuf.json_format.ParseError when it is something else.
    """
    return json_format.Parse(value, into, ignore_unknown_fields=True)
