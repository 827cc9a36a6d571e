"""Calls of `aimesh keys`, `tokens`, `audit` and `whoami`."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from aimesh.identity.v1 import identity_pb2_grpc
from meshkit.errors import InvalidInputError
from tools.cli.client import CALL_TIMEOUT_S, connect
from tools.cli.target import find_mesh

_DURATION = re.compile(r"([1-9][0-9]*)([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


@asynccontextmanager
async def identity_service(state_dir: Path | None) -> AsyncIterator[identity_pb2_grpc.IdentityServiceAsyncStub]:
    """The service at the first coordinator that answers."""
    async with connect(find_mesh(state_dir), "coordinator") as channel:
        yield identity_pb2_grpc.IdentityServiceStub(channel)


async def call(state_dir: Path | None, method: str, request: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    """One call of the service."""
    async with identity_service(state_dir) as service:
        return await getattr(service, method)(request, timeout=timeout_s)


async def pages(state_dir: Path | None, method: str, request: Any, take: Callable[[Any], Awaitable[None]]) -> None:
    """Calls a list page by page and hands each on."""
    async with identity_service(state_dir) as service:
        while True:
            answer = await getattr(service, method)(request, timeout=CALL_TIMEOUT_S)
            await take(answer)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token


def parse_duration(text: str) -> timedelta:
    """30s, 15m, 12h or 90d. Raises InvalidInputError."""
    found = _DURATION.fullmatch(text)
    if found is None:
        raise InvalidInputError(f"{text!r} is no length of time", hint="for example 30s, 15m, 12h or 90d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
