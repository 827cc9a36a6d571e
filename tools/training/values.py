"""Tables of a TOML file by a contract: its field names, enums by short name, durations as 60s, sizes as 4GiB."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from meshkit.errors import InvalidInputError

_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_SECONDS = {"ms": Decimal("0.001"), "s": Decimal(1), "m": Decimal(60), "h": Decimal(3600), "d": Decimal(86400)}
_SIZE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(B|[KMGT]i?B)")
_UNITS = {"B": 1} | {f"{letter}iB": 1 << 10 * power for power, letter in enumerate("KMGT", 1)}
_UNITS |= {f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)}
_BITS = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}
Keys = Mapping[str, FieldDescriptor]


def table(found: object, kind: Descriptor, where: str, leave: Mapping[str, Iterable[str]] | None = None) -> Any:
    """A table as proto3 JSON of a message. Raises InvalidInputError that names the key and what it takes.

    `leave` are fields, by the message's name, that a file cannot set.
    """
    keys = keys_of(kind, leave or {})
    check_keys(found, keys, where)
    assert isinstance(found, dict)
    for group in kind.oneofs:
        chosen = [field.name for field in group.fields if field.name in found]
        if len(chosen) > 1 and group.fields[0].name in keys:
            raise InvalidInputError(f"{where} can have one of {' and '.join(chosen)} only", hint="leave one out")
    return {key: _value(value, keys[key], _joined(where, key), leave or {}) for key, value in found.items()}


def keys_of(kind: Descriptor, leave: Mapping[str, Iterable[str]]) -> Keys:
    """The fields of a message that a file can set, by name."""
    return {field.name: field for field in kind.fields if field.name not in leave.get(kind.name, ())}


def check_keys(found: object, keys: Iterable[str], where: str) -> None:
    """Raises InvalidInputError for what is no table, and for a key that is not known, with the nearest that is."""
    known = list(keys)
    if not isinstance(found, dict):
        raise InvalidInputError(f"{where} must be a table, not {found!r}", hint=f"known keys: {', '.join(known)}")
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InvalidInputError(
                f"{where} has no key {key!r}", hint=f"{hint}known keys: {', '.join(known)}", reason="UNKNOWN_KEY"
            )


def duration(value: object, where: str) -> str:
    """'90s', '1.5m' as proto3 JSON has it. Raises InvalidInputError."""
    match = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidInputError(f"{where} = {value!r} is no length of time", hint='for example "500ms", "60s" or "2h"')
    return f"{Decimal(match[1]) * _SECONDS[match[2]]:.9f}s"


def size(value: object, where: str) -> int:
    """'4GiB', '500MB' or a number of bytes. Raises InvalidInputError."""
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63:
        return value
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise InvalidInputError(f"{where} = {value!r} is no size", hint='for example "4GiB", "500MB" or 1048576')
    return int(Decimal(match[1]) * _UNITS[match[2]])


def words(kind: EnumDescriptor) -> dict[str, str]:
    """Values of an enum by the short name that people use: ddp for STRATEGY_DDP."""
    prefix = f"{re.sub('(?<!^)(?=[A-Z])', '_', kind.name).upper()}_"
    return {value.name.removeprefix(prefix).lower(): value.name for value in kind.values if value.number}


def as_json(value: object, where: str) -> str:
    """A value as JSON. Raises InvalidInputError for dates and what is not finite."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        raise InvalidInputError(
            f"{where} = {value!r} is nothing that JSON has", hint="write text, numbers, true or false, lists, tables"
        ) from None


def _value(value: object, field: FieldDescriptor, where: str, leave: Mapping[str, Iterable[str]]) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return _map(value, where, as_json if field.name == "hyperparameters" else _text)
    if field.is_repeated:
        if not isinstance(value, list):
            raise InvalidInputError(f"{where} must be a list, not {value!r}")
        return [_one(item, field, f"{where}[{index}]", leave) for index, item in enumerate(value)]
    return _one(value, field, where, leave)


def _one(value: object, field: FieldDescriptor, where: str, leave: Mapping[str, Iterable[str]]) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Duration":
            return duration(value, where)
        return table(value, field.message_type, where, leave)
    if field.enum_type is not None:
        return _word(value, field.enum_type, where)
    if field.name.endswith("_bytes"):
        return size(value, where)
    return _scalar(value, field, where)


def _scalar(value: object, field: FieldDescriptor, where: str) -> Any:
    if field.cpp_type in _BITS:
        least, most = _BITS[field.cpp_type]
        fine = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return _checked(value, fine, where, f"a whole number, {least} to {most}")
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        fine = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return _checked(value, fine, where, "a number")
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        return _checked(value, isinstance(value, bool), where, "true or false")
    return _text(value, where)


def _map(value: object, where: str, convert: Callable[[object, str], str]) -> dict[str, str]:
    if not isinstance(value, dict):
        raise InvalidInputError(f"{where} must be a table, not {value!r}", hint="write key = value")
    return {key: convert(item, _joined(where, key)) for key, item in value.items()}


def _word(value: object, kind: EnumDescriptor, where: str) -> str:
    known = words(kind)
    _checked(value, isinstance(value, str) and value.lower() in known, where, f"one of {', '.join(known)}")
    return known[str(value).lower()]


def _text(value: object, where: str) -> str:
    return str(_checked(value, isinstance(value, str), where, "text"))


def _checked(value: object, fine: bool, where: str, form: str) -> Any:
    if not fine:
        raise InvalidInputError(f"{where} = {value!r} is not possible", hint=f"it takes {form}")
    return value


def _joined(where: str, key: str) -> str:
    """`job.toml: data` and `holdout` → `job.toml: data.holdout`."""
    return f"{where} {key}" if where.endswith(":") else f"{where}.{key}"
