"""What Envoy's own filters answer, in words and codes that callers understand, as a part of its bootstrap."""

from __future__ import annotations

from typing import Any

from coordinator.xds.gateway_routes import MODEL_HEADER
from meshkit.channel import MAX_MESSAGE_BYTES

MAX_REST_BYTES = 2 * 1024 * 1024
"""Limit on the body of a REST request: Triton's REST server dies of JSON from about twice that size on."""
_LOGGERS = "type.googleapis.com/envoy.extensions.access_loggers"
_OVERFLOW = "UO"
"""Envoy's flag for a request beyond a cluster's limit, the only one of which is limits.max_requests."""
_RESOURCE_EXHAUSTED = "8"
_KEY_HINT = "this gateway takes API keys, as authorization: Bearer KEY (make one with: aimesh keys create)"
_REVOKED_HINT = "the API key was revoked, or lacks the scope infer"


def local_replies() -> dict[str, Any]:
    """For a message larger than the buffer, a REST body larger than its limit, a request over max_requests, a bad key.

    By itself Envoy would call the first three UNAVAILABLE over gRPC, and a caller would try it again at once.
    """
    busy = f"as many requests are in flight as limits.max_requests of the model's policy allows: %REQ({MODEL_HEADER})%"
    return {
        "mappers": [
            _exhausted(_code_details("REQUEST_BUFFER_CONVERSION_FAIL"), 413)
            | {"body": {"inline_string": f"the message is larger than {MAX_MESSAGE_BYTES} bytes"}},
            _exhausted(_all(_flag(_OVERFLOW), _over_grpc()), 429) | {"body_format_override": _text(busy)},
            {
                "filter": _flag(_OVERFLOW),
                "status_code": 429,
                "body_format_override": _error("as many requests are in flight as the model's policy allows"),
            },
            {
                "filter": _all(_status(401), _over_grpc()),
                "body_format_override": _text("%LOCAL_REPLY_BODY%; " + _KEY_HINT),
            },
            {
                "filter": _all(_status(403), _over_grpc()),
                "body_format_override": _text("%LOCAL_REPLY_BODY%; " + _REVOKED_HINT),
            },
            {"filter": _status(403), "body_format_override": _error("%LOCAL_REPLY_BODY%; " + _REVOKED_HINT)},
            {"filter": _status(401), "body_format_override": _error("%LOCAL_REPLY_BODY%; " + _KEY_HINT)},
            {
                "filter": _status(413),
                "body_format_override": _error(
                    f"a REST body may have {MAX_REST_BYTES} bytes; send larger tensors by gRPC"
                ),
            },
        ]
    }


def _exhausted(condition: dict[str, Any], status: int) -> dict[str, Any]:
    header = {"header": {"key": "grpc-status", "value": _RESOURCE_EXHAUSTED}}
    overwritten = {**header, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
    return {"filter": condition, "status_code": status, "headers_to_add": [overwritten]}


def _code_details(part: str) -> dict[str, Any]:
    expression = {
        "@type": f"{_LOGGERS}.filters.cel.v3.ExpressionFilter",
        "expression": f"response.code_details.contains('{part}')",
    }
    return {"extension_filter": {"name": "envoy.access_loggers.extension_filters.cel", "typed_config": expression}}


def _flag(flag: str) -> dict[str, Any]:
    return {"response_flag_filter": {"flags": [flag]}}


def _over_grpc() -> dict[str, Any]:
    return {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}}


def _all(*conditions: dict[str, Any]) -> dict[str, Any]:
    return {"and_filter": {"filters": list(conditions)}}


def _status(code: int) -> dict[str, Any]:
    comparison = {"op": "EQ", "value": {"default_value": code, "runtime_key": "aimesh.too_large"}}
    return {"status_code_filter": {"comparison": comparison}}


def _text(text: str) -> dict[str, Any]:
    return {"text_format_source": {"inline_string": text}}


def _error(text: str) -> dict[str, Any]:
    return {"json_format": {"error": text}}
