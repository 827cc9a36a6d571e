"""What the gateway answers itself, with the status that a gRPC or REST client should see."""

from __future__ import annotations

import json
from http import HTTPStatus

import grpc
from envoy.config.core.v3 import base_pb2
from envoy.config.route.v3 import route_components_pb2
from google.protobuf import struct_pb2

_OVERWRITE = base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD

_MOST_BYTES = 1000

# Envoy turns an HTTP status into a gRPC code by a fixed table in which 404 is UNIMPLEMENTED and 400 INTERNAL. It adds a
# route's response headers after that, so the code is set there.
_HTTP_OF = {
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    grpc.StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_FOUND,
}


def grpc_reply(
    code: grpc.StatusCode, message: str, match: route_components_pb2.RouteMatch | None = None
) -> route_components_pb2.Route:
    """Ends a gRPC call with `code` and `message`, in which %REQ(HEADER)% stands for a header of the request."""
    return route_components_pb2.Route(
        match=match or everything(),
        direct_response=_direct_response(_HTTP_OF[code], message),
        response_headers_to_add=[_header("grpc-status", str(code.value[0]))],
    )


def json_reply(
    status: HTTPStatus, error: str, match: route_components_pb2.RouteMatch | None = None
) -> route_components_pb2.Route:
    """Ends a REST call with {"error": ...}, as Triton words its own errors; %REQ(HEADER)% as above."""
    response = route_components_pb2.DirectResponseAction(status=status)
    if "%" in error:
        response.body_format.json_format.CopyFrom(_error_object(error))
    else:
        response.body.inline_string = json.dumps({"error": error})
    return route_components_pb2.Route(
        match=match or everything(),
        direct_response=response,
        response_headers_to_add=[_header("content-type", "application/json")],
    )


def text_reply(status: HTTPStatus, text: str) -> route_components_pb2.Route:
    """Ends any call with plain text."""
    return route_components_pb2.Route(match=everything(), direct_response=_direct_response(status, text))


def literal(text: str) -> str:
    """Other people's text, with nothing in it that `grpc_reply` or `json_reply` would take for a header of the request.

    Cut to 1,000 bytes: Envoy refuses all routes when one reply has more than 4,096, and JSON writes up to three for one
    of what is printable, six for what is not, which becomes a space.
    """
    text = "".join(char if char.isprintable() else " " for char in text)
    raw = text.encode()
    if len(raw) > _MOST_BYTES:
        text = raw[: _MOST_BYTES - 3].decode(errors="ignore") + "..."
    return text.replace("%", "%%")


def everything() -> route_components_pb2.RouteMatch:
    """Matches every path."""
    return route_components_pb2.RouteMatch(prefix="/")


def _direct_response(status: HTTPStatus, text: str) -> route_components_pb2.DirectResponseAction:
    response = route_components_pb2.DirectResponseAction(status=status)
    if "%" in text:
        response.body_format.text_format_source.inline_string = text
    else:
        response.body.inline_string = text
    return response


def _error_object(error: str) -> struct_pb2.Struct:
    formatted = struct_pb2.Struct()
    formatted.update({"error": error})
    return formatted


def _header(name: str, value: str) -> base_pb2.HeaderValueOption:
    return base_pb2.HeaderValueOption(header=base_pb2.HeaderValue(key=name, value=value), append_action=_OVERWRITE)
