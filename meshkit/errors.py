"""The error catalogue: one root, typed leaves, one gRPC code and one exit code a leaf.

Each leaf carries a `reason` (UPPER_SNAKE, stable, for programs), a message that names the offending value, and a `hint`
that says what to do. `meshkit.grpc_errors` carries them over gRPC as google.rpc.Status and back.
"""

from __future__ import annotations

from typing import ClassVar

import grpc


class AimeshError(Exception):
    """Root of every error that aimesh raises on purpose. Never raised itself."""

    code: ClassVar[grpc.StatusCode] = grpc.StatusCode.INTERNAL
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str = "", reason: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.reason = reason or _default_reason(type(self))

    def __str__(self) -> str:
        return f"{self.message}. {self.hint}" if self.hint else self.message


class InvalidInputError(AimeshError):
    """The caller's fault: a value that can never be right. The message names the value and the expected form."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    exit_code = 2


class NotFoundError(AimeshError):
    """The thing named does not exist."""

    code = grpc.StatusCode.NOT_FOUND
    exit_code = 3


class ConflictError(AimeshError):
    """The thing exists already, with other content."""

    code = grpc.StatusCode.ALREADY_EXISTS
    exit_code = 4


class PreconditionError(AimeshError):
    """Right in itself, but not in the present state."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    exit_code = 5


class UnavailableError(AimeshError):
    """A dependency (etcd, a coordinator, Triton) does not answer. Trying again later may help."""

    code = grpc.StatusCode.UNAVAILABLE
    exit_code = 6


class ExhaustedError(AimeshError):
    """A limit was reached: memory, disk, ports, message size."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    exit_code = 7


class DeadlineError(AimeshError):
    """No answer in time."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    exit_code = 8


class DataLossError(AimeshError):
    """Bytes are not what their digest says."""

    code = grpc.StatusCode.DATA_LOSS
    exit_code = 9


class SupersededError(AimeshError):
    """A newer holder (session, leader, revision) took over; this one must stop."""

    code = grpc.StatusCode.ABORTED
    exit_code = 10


class UnauthenticatedError(AimeshError):
    """Nobody knows who the caller is: no API key, or one that is not valid (any more)."""

    code = grpc.StatusCode.UNAUTHENTICATED
    exit_code = 11


class PermissionDeniedError(AimeshError):
    """The caller is known, and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    exit_code = 12


LEAVES: tuple[type[AimeshError], ...] = (
    InvalidInputError,
    NotFoundError,
    ConflictError,
    PreconditionError,
    UnavailableError,
    ExhaustedError,
    DeadlineError,
    DataLossError,
    SupersededError,
    UnauthenticatedError,
    PermissionDeniedError,
)
"""Every leaf, each with a code and an exit code of its own; a test holds that, and the docs page with it."""


def _default_reason(kind: type[AimeshError]) -> str:
    return kind.code.name
