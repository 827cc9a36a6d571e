"""Carries the error catalogue over gRPC: google.rpc.Status with ErrorInfo and a hint, and back."""

from __future__ import annotations

from typing import Any, Protocol, cast

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from meshkit.errors import LEAVES, AimeshError

DOMAIN = "aimesh"
_LEAF_BY_CODE = {leaf.code: leaf for leaf in LEAVES}


class CallError(Protocol):
    """What grpc.RpcError and grpc.aio.AioRpcError have in common."""

    def code(self) -> grpc.StatusCode:
        """The call's status code."""

    def details(self) -> str | None:
        """The call's message."""


def to_status(error: AimeshError) -> status_pb2.Status:
    """The error as google.rpc.Status with ErrorInfo (reason, domain) and, for the hint, LocalizedMessage."""
    details = [_pack(error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN))]
    if error.hint:
        details.append(_pack(error_details_pb2.LocalizedMessage(locale="en", message=error.hint)))
    return status_pb2.Status(code=error.code.value[0], message=error.message, details=details)


def from_call(call: CallError) -> AimeshError:
    """The catalogue's leaf for a failed call; a plain AimeshError for a code that the catalogue does not have."""
    leaf = _LEAF_BY_CODE.get(call.code(), AimeshError)
    reason = hint = ""
    # Both halves are duck-typed: grpc_status reads code(), details() and trailing_metadata().
    status = rpc_status.from_call(cast("Any", call)) if hasattr(call, "trailing_metadata") else None
    for packed in status.details if status is not None else ():
        info, text = error_details_pb2.ErrorInfo(), error_details_pb2.LocalizedMessage()
        if packed.Unpack(info):
            reason = info.reason
        elif packed.Unpack(text):
            hint = text.message
    message = call.details() or call.code().name
    return leaf(message, hint=hint, reason=reason or call.code().name)


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.LocalizedMessage) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
