"""From etcd's keys and values to State: the pure half of the mirror."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from aimesh.cluster.v1 import cluster_pb2
from aimesh.experiment.v1 import experiment_pb2
from aimesh.identity.v1 import identity_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from aimesh.training.v1 import training_pb2
from coordinator import keys
from coordinator.etcd import KeyValue
from coordinator.state import FailureKey, State, VersionKey
from meshkit.errors import DataLossError

Parsed = TypeVar("Parsed", bound=Message)


def advance(state: State, revision: int, changes: Iterable[KeyValue]) -> State:
    """The state after the changes. Only the mappings that a change touches are copied.

    Raises DataLossError for a value that is not what its key promises: better to freeze than to decide on half a state.
    """
    touched: dict[str, Any] = {"revision": revision}
    for change in changes:
        area, _, rest = change.key.removeprefix(keys.ROOT).partition("/")
        if area == "election":
            touched["leader"] = change.value.decode() if change.value is not None else ""
        elif area == "auth":
            touched["key_file"] = change.value.decode() if change.value is not None else ""
        elif area == "trust":
            read_trust = _message(registry_pb2.Trust)
            touched["trust"] = _read(change, read_trust) if change.value is not None else registry_pb2.Trust()
        elif area == "strategies":
            read_table = _message(training_pb2.StrategyTable)
            known = change.value is not None
            touched["strategies"] = _read(change, read_table) if known else training_pb2.StrategyTable()
            touched["strategies_revision"] = change.mod_revision if known else 0
        elif area in _AREAS:
            for attribute, read in _AREAS[area].items():
                value = _read(change, read) if change.value is not None else None
                _set(state, touched, attribute, _id(area, rest), value)
    return replace(state, **touched)


def _read(change: KeyValue, read: Callable[[KeyValue], object]) -> object:
    try:
        return read(change)
    except (json_format.ParseError, UnicodeDecodeError) as error:
        raise DataLossError(
            f"etcd key {change.key} does not hold what it should: {error}",
            hint=f"repair it, or remove it: etcdctl del {change.key}",
            reason="STATE_DAMAGED",
        ) from None


def _set(
    state: State, touched: dict[str, Any], attribute: str, key: str | VersionKey | FailureKey, value: object | None
) -> None:
    mapping = touched.setdefault(attribute, dict(getattr(state, attribute)))
    if value is None:
        mapping.pop(key, None)
    else:
        mapping[key] = value


def _id(area: str, rest: str) -> str | VersionKey | FailureKey:
    if area == "failures":
        node, _, rest = rest.partition("/")
        name, _, version = rest.partition("/")
        return node, name, version
    if area in ("models", "measured"):
        name, _, version = rest.partition("/")
        return name, version
    return rest


def _message(kind: type[Parsed]) -> Callable[[KeyValue], Parsed]:
    def read(change: KeyValue) -> Parsed:
        return keys.parse(change.value or b"", kind())

    return read


@functools.lru_cache(maxsize=64)
def _node(value: bytes) -> membership_pb2.Node:
    """A node is written twice at once, under its lease and for good: it is read once."""
    return keys.parse(value, membership_pb2.Node())


def _assigned(change: KeyValue) -> frozenset[VersionKey]:
    parsed = _message(membership_pb2.Assignments)(change)
    return frozenset((model.name, model.version) for model in parsed.models)


_AREAS: dict[str, dict[str, Callable[[KeyValue], object]]] = {
    "nodes": {"nodes": lambda change: _node(change.value or b"")},
    "members": {"members": lambda change: _node(change.value or b"")},
    "models": {"versions": _message(registry_pb2.ModelVersion)},
    "catalog": {"models": _message(registry_pb2.Model)},
    "measured": {"measured": _message(registry_pb2.Measured)},
    "rollouts": {"rollouts": _message(rollout_pb2.Rollout)},
    "quarantine": {"quarantined": _message(experiment_pb2.Quarantine)},
    "deployments": {"deployments": _message(routing_pb2.Deployment)},
    "weights": {"weights": _message(routing_pb2.NodeWeights)},
    "assignments": {"assignments": _assigned, "assignment_revisions": lambda change: change.mod_revision},
    "drains": {"drains": lambda change: change.mod_revision},
    "failures": {"failures": _message(membership_pb2.LoadFailure)},
    "keys": {"api_keys": _message(identity_pb2.ApiKey)},
    "tokens": {"join_tokens": _message(identity_pb2.JoinToken)},
    "revoked": {"revoked": _message(identity_pb2.Revocation)},
    "jobs": {"jobs": _message(training_pb2.Job), "job_revisions": lambda change: change.mod_revision},
    "coordinators": {"coordinators": _message(cluster_pb2.Coordinator)},
}
assert {name for reads in _AREAS.values() for name in reads} <= {item.name for item in fields(State)}


def encode_assignment(versions: Iterable[VersionKey]) -> bytes:
    """The JSON of a node's assignment: names and versions only."""
    models = [registry_pb2.ModelVersion(name=name, version=version) for name, version in sorted(versions)]
    return keys.encode(membership_pb2.Assignments(models=models))
