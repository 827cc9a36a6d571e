"""DiscoveryResponse on the wire. Resources are already serialized, once for all clients; they are only copied in."""

from __future__ import annotations

from collections.abc import Iterator

from envoy.service.discovery.v3 import discovery_pb2

from coordinator.xds.subscriptions import Response

_RESOURCES_TAG = bytes([discovery_pb2.DiscoveryResponse.RESOURCES_FIELD_NUMBER << 3 | 2])


def serialize_response(response: Response) -> bytes:
    """The bytes of a DiscoveryResponse. Source: Protocol Buffers documentation, "Encoding"."""
    head = discovery_pb2.DiscoveryResponse(
        version_info=response.version, type_url=response.type_url, nonce=response.nonce
    )
    return b"".join([head.SerializeToString(), *_fields(response)])


def _fields(response: Response) -> Iterator[bytes]:
    for resource in response.resources:
        yield _RESOURCES_TAG
        yield _varint(len(resource))
        yield resource


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)
