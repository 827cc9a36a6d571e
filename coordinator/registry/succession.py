"""Which version may follow which: what a new one replaces, and what it must not break."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aimesh.registry.v1 import registry_pb2
from coordinator.registry.finding import kind_of, word
from coordinator.registry.signatures import breaks
from meshkit.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError
from meshkit.names import VersionKey, version_key


def check_succession(version: registry_pb2.ModelVersion, recorded: Sequence[registry_pb2.ModelVersion]) -> None:
    """Whether a version may be recorded beside those of its name.

    Raises ConflictError when the name is of another kind, NotFoundError or InvalidInputError for a `replaces` that does
    not exist or is not lower, PreconditionError when the version breaks callers of the one that it replaces.
    """
    for other in recorded:
        if kind_of(other) != kind_of(version):
            raise ConflictError(
                f"{version.name} is a {word(kind_of(other))}, so {version.version} cannot be a "
                f"{word(kind_of(version))}",
                hint="models and prompts share their names: take another",
                reason="WRONG_KIND",
            )
    before = replaced(version, recorded)
    if before is None or _major(before.version) < _major(version.version):
        return
    if found := breaks(before.signature, version.signature):
        raise PreconditionError(
            f"{version.name}:{version.version} breaks callers of {before.version}: {'; '.join(found)}",
            hint=f"push it as {_major(version.version) + 1}.0.0, or keep what callers of {before.version} use",
            reason="SIGNATURE_BREAKS",
        )


def replaced(
    version: registry_pb2.ModelVersion, recorded: Iterable[registry_pb2.ModelVersion]
) -> registry_pb2.ModelVersion | None:
    """What a new version takes the place of: the one it names, or the newest lower release of its major version.

    Pre-releases promise nothing (semver.org 2.0.0, item 9), so they count only where they are named. None for a first
    version. Raises NotFoundError or InvalidInputError for one that cannot be replaced.
    """
    by_number = {other.version: other for other in recorded}
    if version.replaces:
        return _named(version, by_number)
    own = version_key(version.version)
    lower = [number for number in by_number if _released_below(version_key(number), own)]
    return by_number[max(lower, key=version_key)] if lower else None


def _named(
    version: registry_pb2.ModelVersion, by_number: dict[str, registry_pb2.ModelVersion]
) -> registry_pb2.ModelVersion:
    if version_key(version.replaces) >= version_key(version.version):
        raise InvalidInputError(
            f"{version.name}:{version.version} cannot replace {version.replaces}",
            hint="a version replaces a lower one: give this one a higher number",
        )
    if version.replaces not in by_number:
        known = ", ".join(sorted(by_number, key=version_key)) or "none"
        raise NotFoundError(
            f"{version.name}:{version.version} replaces {version.replaces!r}, which does not exist",
            hint=f"{version.name} has: {known}",
            reason="VERSION_NOT_FOUND",
        )
    return by_number[version.replaces]


def _released_below(other: VersionKey, own: VersionKey) -> bool:
    return other[0] == own[0] and other < own and not other[4]


def _major(version: str) -> int:
    return version_key(version)[0]
