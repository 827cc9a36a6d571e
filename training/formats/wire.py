"""Walks protobuf messages in a file without their schema and without loading what is large in them.

https://protobuf.dev/programming-guides/encoding: a message is a row of (field number and wire type, value).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from meshkit.errors import InvalidInputError
from training.formats.bounded import Window, broken

MOST_FIELDS = 2_000_000
_MOST_TEXT = 1 << 16
_RUN_BYTES = 5 << 12
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Budget:
    """How many fields may still be read in one file."""

    def __init__(self) -> None:
        self.left = MOST_FIELDS

    def take(self) -> None:
        """Raises InvalidInputError when there are more than any model has."""
        self.left -= 1
        if self.left < 0:
            raise broken(f"it has more than {MOST_FIELDS} fields")


@dataclass(frozen=True)
class Field:
    """One field: a number, or the place of its bytes."""

    number: int
    value: int
    """Of a varint, unsigned, or of a fixed number's bytes."""
    message: Message | None
    """The bytes of a text, a message or a packed list."""
    repeat: int = 1
    """How many of 32 bits follow each other in this field; `value` is the first's."""

    @property
    def signed(self) -> int:
        """An int64."""
        return self.value - (1 << 64) if self.value >> 63 else self.value

    def text(self) -> str:
        """Its bytes as text, cut where it is long; empty for a number."""
        if self.message is None:
            return ""
        return self.message.bytes(_MOST_TEXT).decode("utf-8", "replace")


@dataclass(frozen=True)
class Message:
    """A part of the file that holds a message."""

    window: Window
    begin: int
    end: int
    budget: Budget

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin

    def bytes(self, most: int) -> bytes:
        """Its first bytes."""
        return self.window.read(self.begin, min(self.size, most))

    def fields(self) -> Iterator[Field]:
        """Its fields in order. Raises InvalidInputError where it is no message."""
        at = self.begin
        while at < self.end:
            self.budget.take()
            tag, at = self._varint(at)
            number, kind = tag >> 3, tag & 7
            if not 0 < number < 1 << 29:
                raise broken(f"byte {at} begins no field of a message")
            if kind == _VARINT:
                value, at = self._varint(at)
                yield Field(number, value, None)
            elif kind in (_FIXED64, _FIXED32):
                width = 8 if kind == _FIXED64 else 4
                self._check(at, width)
                value = int.from_bytes(self.window.read(at, width), "little")
                run = self._run(at - 1) if kind == _FIXED32 and number < 16 else 1
                yield Field(number, value, None, run)
                at += width + (run - 1) * 5
            elif kind == _BYTES:
                length, at = self._varint(at)
                self._check(at, length)
                yield Field(number, 0, Message(self.window, at, at + length, self.budget))
                at += length
            else:
                raise broken(f"byte {at} begins a field of wire type {kind}")

    def all(self, number: int) -> Iterator[Message]:
        """The messages in one field."""
        return (field.message for field in self.fields() if field.number == number and field.message is not None)

    def numbers(self, number: int) -> list[int]:
        """The values of a repeated int64, packed or not."""
        found: list[int] = []
        for field in self.fields():
            if field.number == number:
                found += [field.signed] if field.message is None else field.message.packed()
        return found

    def text(self, number: int) -> str:
        """The last text in one field; empty when there is none."""
        texts = [field.text() for field in self.fields() if field.number == number]
        return texts[-1] if texts else ""

    def packed(self) -> list[int]:
        """The numbers of a packed list of int64, the first thousand."""
        found: list[int] = []
        at = self.begin
        while at < self.end and len(found) < 1024:
            value, at = self._varint(at)
            found.append(value - (1 << 64) if value >> 63 else value)
        return found

    def _run(self, at: int) -> int:
        """How many fields of a one-byte tag and four bytes follow each other: lists of floats may be millions long."""
        data = self.window.read(at, min(_RUN_BYTES, (self.end - at) // 5 * 5))
        tags = data[::5]
        return len(tags) - len(tags.lstrip(tags[:1]))

    def _varint(self, at: int) -> tuple[int, int]:
        value = shift = 0
        data = self.window.read(at, min(10, self.end - at))
        for count, byte in enumerate(data, 1):
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, at + count
            shift += 7
        raise broken(f"byte {at} begins no number")

    def _check(self, at: int, length: int) -> None:
        if at + length > self.end:
            raise broken(f"a field of {length} bytes at {at} reaches beyond its message's end at {self.end}")


def message_in(window: Window) -> Message:
    """A whole file as one message."""
    return Message(window, 0, window.size, Budget())


def top_level(window: Window) -> dict[int, Message | None]:
    """The file's own fields by number, those before the place where a cut file ends included."""
    found: dict[int, Message | None] = {}
    for end in (window.size, 1 << 62):  # the second: the last field may reach beyond the file
        try:
            for field in Message(window, 0, end, Budget()).fields():
                found.setdefault(field.number, field.message)
        except InvalidInputError:
            continue
        break
    return found
