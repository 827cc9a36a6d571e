"""The index of a TensorFlow checkpoint: names, types and shapes of variables, without their values.

A tensor bundle's index is a table of LevelDB's format (leveldb/doc/table_format.md) whose values are BundleEntryProto
(tensorflow/core/protobuf/tensor_bundle.proto). TensorFlow writes it uncompressed.
"""

from __future__ import annotations

from collections.abc import Iterator

from training.formats.bounded import Window, broken, window_of
from training.formats.wire import Message, message_in

_FOOTER_BYTES = 48
_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_MOST_ENTRIES = 1 << 20
_TRAILER_BYTES = 5  # one of the compression, four of the checksum


def variables(window: Window) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Name, TensorFlow's number of the type, and shape of each. Raises InvalidInputError."""
    if window.size < _FOOTER_BYTES:
        raise broken("the variables' index is cut short")
    footer = window.read(window.size - _FOOTER_BYTES, _FOOTER_BYTES)
    if footer[-8:] != _MAGIC:
        raise broken("the variables' index is cut short or no index")
    _, _, offset, size, _ = _varints(footer, 0, 4)
    for count, (_, handle) in enumerate(_block(window, offset, size)):
        if count > _MOST_ENTRIES:
            raise broken("the variables' index has too many blocks")
        offset, size, _ = _varints(handle, 0, 2)
        for key, value in _block(window, offset, size):
            if key:  # the empty one is about the index itself
                yield _entry(key, message_in(window_of(value)))


def _entry(key: bytes, entry: Message) -> tuple[str, int, tuple[int, ...]]:
    """BundleEntryProto {dtype 1, shape 2 {dim 2 {size 1}}}; a size of 0 is left out, as protobuf does."""
    kinds = [one.value for one in entry.fields() if one.number == 1]
    shape = tuple((dim.numbers(1) or [0])[-1] for shape in entry.all(2) for dim in shape.all(2))
    return key.decode("utf-8", "replace"), kinds[-1] if kinds else 0, shape


def _block(window: Window, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """The entries of a block: each key shares a beginning with the one before it."""
    data = window.read(offset, size + _TRAILER_BYTES)
    if data[size] != 0 or size < 4:
        raise broken(f"block at {offset} of the variables' index is compressed or broken")
    restarts = int.from_bytes(data[size - 4 : size], "little")
    end, at, key = size - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, fresh, length, at = _varints(data, at, 3)
        if shared > len(key) or at + fresh + length > end or shared + fresh > 1 << 16:
            raise broken(f"block at {offset} of the variables' index is broken")
        key = key[:shared] + data[at : at + fresh]
        yield key, data[at + fresh : at + fresh + length]
        at += fresh + length


def _varints(data: bytes, at: int, count: int) -> tuple[int, ...]:
    """So many numbers, and where the next byte is."""
    found = []
    for _ in range(count):
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise broken("the variables' index has a broken number")
            byte = data[at]
            value |= (byte & 0x7F) << shift
            at, shift = at + 1, shift + 7
            if byte < 0x80:
                break
        found.append(value)
    return (*found, at)
