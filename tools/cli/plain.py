"""Protobuf messages as plain values for JSON: the proto file's field names, numbers as numbers, enums by short name."""

from __future__ import annotations

from typing import Any

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message


def plain(message: Message) -> dict[str, Any]:
    """The message as a dict of all its fields: unset sub-messages are None, 64-bit integers are numbers."""
    return {field.name: _field(message, field) for field in message.DESCRIPTOR.fields}


def enum_name(kind: EnumDescriptor, number: int) -> str:
    """NODE_STATE_READY of NodeState as 'READY'; the number as text when this program does not know it."""
    value = kind.values_by_number.get(number)
    if value is None:
        return str(number)
    prefix = "".join(f"_{letter}" if letter.isupper() else letter.upper() for letter in kind.name).lstrip("_")
    return value.name.removeprefix(f"{prefix}_")


def _field(message: Message, field: Any) -> Any:
    value = getattr(message, field.name)
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        return {key: _scalar(field.message_type.fields_by_name["value"], value[key]) for key in sorted(value)}
    if field.is_repeated:
        return [_scalar(field, item) for item in value]
    if field.message_type is not None and not message.HasField(field.name):
        return None
    return _scalar(field, value)


def _scalar(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name in ("google.protobuf.Timestamp", "google.protobuf.Duration"):
            return value.ToJsonString()
        return plain(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if isinstance(value, bytes):
        return value.hex()
    return value
