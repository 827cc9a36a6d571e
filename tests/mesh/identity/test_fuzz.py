"""Bytes that nobody should send, at each port of a coordinator: it goes on answering."""

from __future__ import annotations

import asyncio
import random
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest

from aimesh.identity.v1 import identity_pb2
from meshkit.server import MAX_REQUEST_BYTES
from tests.certificates import TestAuthority
from tests.mesh.coordinator.conftest import coordinator
from tests.mesh.identity.conftest import Secure, refused
from tests.processes import EtcdServer, eventually

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
TRIES = 60


def noise(draw: random.Random) -> bytes:
    """Plain noise, noise after HTTP/2's preface, or frames with random types and lengths that are not true."""
    body = draw.randbytes(draw.randrange(1, 2048))
    match draw.randrange(3):
        case 0:
            return body
        case 1:
            return PREFACE + body
        case _:
            frames = (
                draw.randrange(1 << 12).to_bytes(3, "big") + draw.randbytes(6) + draw.randbytes(draw.randrange(64))
                for _ in range(draw.randrange(1, 20))
            )
            return PREFACE + bytes(9) + b"".join(frames)  # an empty SETTINGS frame first, as it must be


async def throw(port: int, data: bytes, context: ssl.SSLContext | None = None) -> None:
    """Sends bytes and takes what comes, until the other side hangs up or half a second passes."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    except (TimeoutError, OSError):
        return
    try:
        async with asyncio.timeout(0.5):
            writer.write(data)
            await writer.drain()
            await reader.read()
    except (TimeoutError, OSError):
        pass  # hung up on, as is right
    finally:
        writer.transport.abort()


def trusting(authority: TestAuthority, *, known: bool) -> ssl.SSLContext:
    """The noise of someone with a certificate, or without."""
    context = ssl.create_default_context(cafile=str(authority.ca))
    context.set_alpn_protocols(["h2"])
    if known:
        tls = authority.issue("client", "noisy")
        context.load_cert_chain(str(tls.cert), str(tls.key))
    return context


@pytest.mark.parametrize("seed", [1, 2])
async def test_noise_at_the_ports_of_a_coordinator_with_tls(secure: Secure, seed: int) -> None:
    draw = random.Random(seed)
    known, unknown = trusting(secure.authority, known=True), trusting(secure.authority, known=False)
    ports = [(secure.settings.port, None), (secure.settings.port, known), (secure.settings.port, unknown)]
    ports += [(secure.settings.enroll_port, None), (secure.settings.enroll_port, unknown)]
    for port, context in ports:
        await asyncio.gather(*(throw(port, noise(draw), context) for _ in range(TRIES // 2)))
    assert (await secure.status()).coordinators
    assert not secure.task.done()


async def test_noise_at_the_port_of_a_coordinator_without_tls(etcd: EtcdServer, tmp_path: Path) -> None:
    draw = random.Random(3)
    async with coordinator(etcd, tmp_path) as running:
        await asyncio.gather(*(throw(running.settings.port, noise(draw)) for _ in range(TRIES)))
        await eventually(running.status, what="an answer")
        assert not running.task.done()


async def test_noise_as_arguments(secure: Secure) -> None:
    """Well-formed calls whose messages, and keys, are noise."""
    draw = random.Random(4)
    paths = [
        "/aimesh.identity.v1.IdentityService/CreateKey",
        "/aimesh.identity.v1.IdentityService/ListAuditEvents",
        "/aimesh.identity.v1.RenewalService/Renew",
        "/aimesh.registry.v1.RegistryService/CreateVersion",
        "/aimesh.routing.v1.RoutingService/ApplyDeployment",
    ]
    channel: Any
    async with secure.caller() as channel:
        for path in paths:
            calls = [
                channel.unary_unary(path)(
                    draw.randbytes(draw.randrange(200)),
                    timeout=10,
                    metadata=(("authorization", f"Bearer {draw.randbytes(20).hex()}.{draw.randbytes(9).hex()}.x"),)
                    if draw.random() < 0.3
                    else (),
                )
                for _ in range(TRIES // 3)
            ]
            await asyncio.gather(*calls, return_exceptions=True)
    assert (await secure.status()).coordinators


async def test_what_is_too_large_is_refused_before_it_is_taken_in(secure: Secure) -> None:
    """A message is read before anyone is asked who he is: strangers at a gateway must not fill the memory."""
    request = identity_pb2.RevokeKeyRequest(name="x" * (MAX_REQUEST_BYTES + 1))
    stranger = secure.authority.issue("gateway", "g1")
    assert await refused(secure.call("RevokeKey", request, stranger)) == grpc.StatusCode.RESOURCE_EXHAUSTED
