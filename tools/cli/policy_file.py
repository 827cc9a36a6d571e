"""A RoutePolicy in a file: TOML, YAML or JSON with the contract's own field names, durations as 250ms, 2s or 1m."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from aimesh.routing.v1 import routing_pb2
from meshkit.errors import InvalidInputError

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h)")
_NESTED = re.compile(r"Failed to parse (\w+) field: ")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600)}
_READERS: Mapping[str, Callable[[str], Any]] = {
    ".toml": tomllib.loads,
    ".json": json.loads,
    ".yaml": yaml.safe_load,
    ".yml": yaml.safe_load,
}


def read_policy(path: Path) -> routing_pb2.RoutePolicy:
    """The policy in a file; an empty file is the default. Raises InvalidInputError naming the key and what it takes."""
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InvalidInputError(f"{path}: {path.suffix!r} is no known form", hint=f"one of {', '.join(_READERS)}")
    try:
        found = reader(path.read_text())
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise InvalidInputError(f"{path}: {' '.join(str(error).split())}") from None
    return parse_policy({} if found is None else found, str(path))


def parse_policy(found: object, source: str) -> routing_pb2.RoutePolicy:
    """The same from plain values; `source` names them in errors."""
    values = _table(found, routing_pb2.RoutePolicy.DESCRIPTOR, f"{source}: policy")
    try:
        return json_format.ParseDict(values, routing_pb2.RoutePolicy())
    except json_format.ParseError as error:
        raise InvalidInputError(f"{source}: {_reason(error)}", hint="see docs/operations/routing.md") from None


def _reason(error: json_format.ParseError) -> str:
    """The field and what is wrong with it, from protobuf: "Failed to parse A field: Failed to parse B field: why.."."""
    *fields, why = _NESTED.split(str(error).rstrip("."))
    return f"{'.'.join(['policy', *filter(None, fields)])}: {why}" if fields else why


def _table(found: object, kind: Descriptor, where: str) -> dict[str, Any]:
    """The table with its keys checked and its durations in the form of proto3 JSON."""
    fields = {field.name: field for field in kind.fields}
    known = f"known are: {', '.join(fields)}" if fields else "it has no keys"
    if not isinstance(found, dict):
        raise InvalidInputError(f"{where} must be a table, not {found!r}", hint=known)
    for key in found:
        if key not in fields:
            raise InvalidInputError(f"{where} has no {key!r}", hint=known, reason="UNKNOWN_KEY")
    for group in kind.oneofs:
        chosen = [field.name for field in group.fields if field.name in found]
        if len(chosen) > 1:
            raise InvalidInputError(f"{where} can be one of {' and '.join(chosen)} only", hint="leave one out")
    return {key: _value(value, fields[key], f"{where}.{key}") for key, value in found.items()}


def _value(value: object, field: FieldDescriptor, where: str) -> Any:
    if not field.is_repeated:
        return _one(value, field, where)
    if not isinstance(value, list):
        raise InvalidInputError(f"{where} must be a list, not {value!r}")
    return [_one(item, field, f"{where}[{index}]") for index, item in enumerate(value)]


def _one(value: object, field: FieldDescriptor, where: str) -> Any:
    if field.message_type is None:
        return value
    if field.message_type.full_name != "google.protobuf.Duration":
        return _table(value, field.message_type, where)
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidInputError(f"{where} = {value!r} is no length of time", hint='for example "250ms", "2s" or "1m"')
    return f"{Decimal(match[1]) * _SECONDS[match[2]]:.9f}s"
