"""Names and versions of models: what is allowed, and the order of versions."""

from __future__ import annotations

import re

from meshkit.errors import InvalidInputError

_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
# Semantic version without build metadata, in the words of semver.org 2.0.0 (its suggested expression).
_VERSION = re.compile(
    r"(?P<major>0|[1-9][0-9]*)\.(?P<minor>0|[1-9][0-9]*)\.(?P<patch>0|[1-9][0-9]*)"
    r"(?:-(?P<pre>(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*)(?:\.(?:0|[1-9][0-9]*|[0-9]*[a-zA-Z-][0-9a-zA-Z-]*))*))?"
)
_VERSION_LENGTH = 64

_Identifier = tuple[int, int, str]
VersionKey = tuple[int, int, int, int, tuple[_Identifier, ...]]
"""Sorts versions by precedence."""


def check_model_name(name: str) -> str:
    """The name itself. Raises InvalidInputError when it is not [a-z0-9][a-z0-9_.-]{0,62}."""
    if not _NAME.fullmatch(name):
        raise InvalidInputError(
            f"model name {name!r} is not allowed",
            hint="use 1 to 63 of a-z, 0-9, '_', '.' and '-', the first a letter or digit",
            reason="BAD_MODEL_NAME",
        )
    return name


def check_version(version: str) -> str:
    """The version itself. Raises InvalidInputError when it is not MAJOR.MINOR.PATCH with an optional pre-release."""
    _match(version)
    return version


def version_key(version: str) -> VersionKey:
    """A key that sorts versions by precedence, a pre-release before its release. Raises InvalidInputError.

    Source: semver.org 2.0.0, item 11: numeric identifiers are less than alphanumeric ones and compare as numbers,
    the others in ASCII order; of two that begin alike, the longer pre-release is greater.
    """
    match = _match(version)
    pre = match["pre"]
    identifiers = tuple(_identifier(part) for part in pre.split(".")) if pre else ()
    return int(match["major"]), int(match["minor"]), int(match["patch"]), 0 if pre else 1, identifiers


def _identifier(part: str) -> _Identifier:
    return (0, int(part), "") if part.isdigit() else (1, 0, part)


def _match(version: str) -> re.Match[str]:
    match = _VERSION.fullmatch(version)
    if match is None or len(version) > _VERSION_LENGTH:
        raise InvalidInputError(
            f"version {version!r} is not allowed",
            hint="use a semantic version of at most 64 characters, such as 1.0.0 or 1.2.0-rc.1",
            reason="BAD_VERSION",
        )
    return match
