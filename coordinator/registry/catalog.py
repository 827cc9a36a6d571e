"""Aliases and tags: what is said of a model and may change. Pure: values in, new values out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.rollout.course import is_over
from meshkit.errors import ExhaustedError, InvalidInputError, NotFoundError, PreconditionError

MOST_ALIASES = 64
MOST_TAGS = 32
"""Of one version."""
MOST_TAG_VALUE = 256
MOST_BYTES = 512 * 1024
"""Of all that is said of one model: etcd takes 1.5 MiB a write."""

# Letters first and no '.', so that no alias can be taken for a version.
_ALIAS = re.compile(r"[a-z][a-z0-9_-]{0,62}")
_TAG = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_./-]{0,61}[a-zA-Z0-9])?")


def check_alias(alias: str) -> str:
    """The alias itself. Raises InvalidInputError when it is not [a-z][a-z0-9_-]{0,62}."""
    if not _ALIAS.fullmatch(alias):
        raise InvalidInputError(
            f"alias {alias[:80]!r} is not allowed",
            hint="use 1 to 63 of a-z, 0-9, '_' and '-', the first a letter, such as champion",
        )
    return alias


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises InvalidInputError naming the key or value that is not allowed."""
    for key, value in tags.items():
        if not _TAG.fullmatch(key):
            raise InvalidInputError(
                f"tag {key[:80]!r} is not allowed",
                hint="use 1 to 63 letters, digits, '_', '.', '/' and '-', a letter or digit at each end",
            )
        if len(value) > MOST_TAG_VALUE or not (value.isprintable() or not value):
            raise InvalidInputError(
                f"the value of tag {key} has {len(value)} characters, or some that cannot be printed",
                hint=f"at most {MOST_TAG_VALUE}, on one line; longer texts belong into the changelog",
            )


def with_alias(model: registry_pb2.Model, alias: str, version: str) -> registry_pb2.Model:
    """The model with an alias that stands for a version. Raises ExhaustedError."""
    changed = _copy(model)
    changed.aliases[alias] = version
    if len(changed.aliases) > MOST_ALIASES:
        raise ExhaustedError(
            f"{model.name} would have {len(changed.aliases)} aliases",
            hint=f"at most {MOST_ALIASES}; remove one: aimesh models alias {model.name} ALIAS --rm",
        )
    return _bounded(changed)


def without_alias(model: registry_pb2.Model, alias: str) -> registry_pb2.Model:
    """The model without an alias. Raises NotFoundError."""
    aliased_version(model, alias)
    changed = _copy(model)
    del changed.aliases[alias]
    return changed


def with_tags(
    model: registry_pb2.Model, version: str, tags: Mapping[str, str], remove: Iterable[str]
) -> registry_pb2.Model:
    """The model with tags of a version set and others removed. Raises NotFoundError, ExhaustedError."""
    values = dict(model.tags[version].values) if version in model.tags else {}
    for key in remove:
        if key not in values:
            raise NotFoundError(f"{model.name}:{version} has no tag {key!r}", hint=f"it has {_listed(values)}")
        del values[key]
    values |= tags
    if len(values) > MOST_TAGS:
        raise ExhaustedError(f"{model.name}:{version} would have {len(values)} tags", hint=f"at most {MOST_TAGS}")
    changed = without_tags(model, version)
    if values:
        changed.tags[version].CopyFrom(registry_pb2.Tags(values=values))
    return _bounded(changed)


def without_tags(model: registry_pb2.Model, version: str) -> registry_pb2.Model:
    """The model without what was said of a version."""
    changed = _copy(model)
    changed.tags.pop(version, None)
    return changed


def aliased_version(model: registry_pb2.Model, alias: str) -> str:
    """The version that an alias stands for. Raises NotFoundError saying which aliases there are."""
    if alias not in model.aliases:
        raise NotFoundError(
            f"model {model.name!r} has no alias {alias!r}",
            hint=f"it has {_listed(model.aliases)}; set one: aimesh models alias {model.name} {alias} VERSION",
            reason="ALIAS_NOT_FOUND",
        )
    return model.aliases[alias]


def aliases_of(model: registry_pb2.Model, version: str) -> list[str]:
    """The aliases that stand for a version."""
    return sorted(alias for alias, stands_for in model.aliases.items() if stands_for == version)


def follows(deployment: routing_pb2.Deployment, alias: str) -> bool:
    """Whether a target of a deployment follows an alias."""
    return any(target.alias == alias for target in deployment.targets)


def resolved(deployment: routing_pb2.Deployment, model: registry_pb2.Model) -> routing_pb2.Deployment:
    """The deployment with each target that follows an alias at the version that it stands for.

    What else names such a target's version (a match of the policy) goes with it. Raises NotFoundError for an alias that
    there is not, PreconditionError when two targets come to the same version.
    """
    changed = routing_pb2.Deployment()
    changed.CopyFrom(deployment)
    moves = {}
    for target in changed.targets:
        if target.alias:
            version = aliased_version(model, target.alias)
            moves[target.version] = version
            target.version = version
    for match in changed.policy.matches:
        match.version = moves.get(match.version, match.version) if match.version else ""
    _check_apart(changed)
    return changed


def rollout_holds(rollout: rollout_pb2.Rollout, alias: str) -> bool:
    """Whether a rollout that is not over needs an alias to stay where it is: it may go back to what was before."""
    return under_way(rollout) and (
        follows(rollout.before, alias)
        or any(target.alias == alias for step in rollout.steps for target in step.targets)
    )


def rollout_needs(rollout: rollout_pb2.Rollout, version: str) -> bool:
    """Whether a rollout that is not over may yet load a version."""
    targets = [*rollout.before.targets, *(target for step in rollout.steps for target in step.targets)]
    return under_way(rollout) and any(target.version == version for target in targets)


def under_way(rollout: rollout_pb2.Rollout) -> bool:
    """Whether a rollout is not over."""
    return bool(rollout.state) and not is_over(rollout)


def _check_apart(deployment: routing_pb2.Deployment) -> None:
    seen: dict[str, str] = {}
    for target in deployment.targets:
        other = seen.setdefault(target.version, target.alias)
        if other != target.alias:
            names = " and ".join(sorted(f"alias {each}" if each else "a target" for each in (other, target.alias)))
            raise PreconditionError(
                f"{names} of deployment {deployment.name!r} come to the same version {target.version}",
                hint="a version is a target once: leave one of them out",
                reason="SAME_VERSION",
            )


def _bounded(model: registry_pb2.Model) -> registry_pb2.Model:
    if model.ByteSize() > MOST_BYTES:
        raise ExhaustedError(
            f"the tags of {model.name} would take {model.ByteSize()} bytes", hint=f"at most {MOST_BYTES}; remove some"
        )
    return model


def _copy(model: registry_pb2.Model) -> registry_pb2.Model:
    copied = registry_pb2.Model()
    copied.CopyFrom(model)
    return copied


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
