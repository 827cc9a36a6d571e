"""Where things lie in etcd, and their form there: proto3 JSON, so that `etcdctl get` is readable."""

from __future__ import annotations

from typing import TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

Parsed = TypeVar("Parsed", bound=Message)
ROOT = "/aimesh/v1/"
LEADER = f"{ROOT}election/leader"
TRUST = f"{ROOT}trust/cluster"
"""Whose signatures of versions count."""
STRATEGIES = f"{ROOT}strategies/table"
"""What finished training jobs have taught of strategies."""
KEY_FILE = f"{ROOT}auth/key_file"
"""Fingerprint of the key with which the coordinators sign API keys."""
AUDIT = "/aimesh/audit/v1/"
"""Audit events on their way to the log. Beside ROOT, so that they are no part of the mirrored state."""
AUDIT_HEADS = "/aimesh/audit-heads/v1/"
"""What each audit store held last."""


def node(node_id: str) -> str:
    """The node while its lease lives."""
    return f"{ROOT}nodes/{node_id}"


def member(node_id: str) -> str:
    """The same without a lease, until it leaves or is forgotten: what is known of it when it has vanished."""
    return f"{ROOT}members/{node_id}"


def drain(node_id: str) -> str:
    """There while an operator drains the node."""
    return f"{ROOT}drains/{node_id}"


def failure(node_id: str, name: str, version: str) -> str:
    """There while a version is not tried again on a node."""
    return f"{ROOT}failures/{node_id}/{name}/{version}"


def version(name: str, version: str) -> str:
    """A model version."""
    return f"{ROOT}models/{name}/{version}"


def model(name: str) -> str:
    """A model's aliases and tags."""
    return f"{ROOT}catalog/{name}"


def measured(name: str, version: str) -> str:
    """What a version took where it was loaded."""
    return f"{ROOT}measured/{name}/{version}"


def rollout(name: str) -> str:
    """The newest rollout of a deployment."""
    return f"{ROOT}rollouts/{name}"


def quarantine(config_hash: str) -> str:
    """A configuration that is not to be tried again, or was so until its review."""
    return f"{ROOT}quarantine/{config_hash}"


def deployment(name: str) -> str:
    """A deployment."""
    return f"{ROOT}deployments/{name}"


def weights(name: str) -> str:
    """How much each node gets of a deployment's requests, as the leader has measured."""
    return f"{ROOT}weights/{name}"


def assignment(node_id: str) -> str:
    """What a node is to run."""
    return f"{ROOT}assignments/{node_id}"


def job(job_id: str) -> str:
    """A training job, until it is removed."""
    return f"{ROOT}jobs/{job_id}"


def coordinator(coordinator_id: str) -> str:
    """A coordinator while its lease lives."""
    return f"{ROOT}coordinators/{coordinator_id}"


def api_key(key_id: str) -> str:
    """An API key, until it is revoked or ends."""
    return f"{ROOT}keys/{key_id}"


def api_key_name(name: str) -> str:
    """Holds the id of the API key that has the name."""
    return f"{ROOT}key_names/{name}"


def join_token(token_id: str) -> str:
    """A join token, until it is used, revoked or ends."""
    return f"{ROOT}tokens/{token_id}"


def revocation(role: str, identity_id: str) -> str:
    """There once certificates of an identity were revoked."""
    return f"{ROOT}revoked/{role}/{identity_id}"


def audit_event(event_id: str) -> str:
    """An audit event that the log may not hold yet."""
    return f"{AUDIT}{event_id}"


def audit_head(store: str) -> str:
    """The newest event that an audit store was seen to hold."""
    return f"{AUDIT_HEADS}{store}"


def encode(message: Message) -> bytes:
    """The message as JSON, the same bytes for the same content."""
    return json_format.MessageToJson(message, preserving_proto_field_name=True, indent=None, sort_keys=True).encode()


def parse(value: bytes, into: Parsed) -> Parsed:
    """Reads JSON that `encode` wrote, also by a newer version with fields that this one does not know.

    Raises google.protobuf.json_format.ParseError when it is something else.
    """
    return json_format.Parse(value, into, ignore_unknown_fields=True)
