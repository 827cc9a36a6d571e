"""A machine's first certificate for a token, once; and new ones for those that have one."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from meshkit import scopes
from meshkit.certificates import Names, names_of, new_key, parse_certificate, request
from meshkit.channel import aio_channel
from meshkit.tls import Identity, TlsSettings
from tests.mesh.identity.conftest import Secure, refused

UNAUTHENTICATED, DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


async def token(secure: Secure, node_id: str = "n1", *names: str) -> str:
    answer = await secure.call("CreateJoinToken", identity_pb2.CreateJoinTokenRequest(node_id=node_id, names=names))
    return str(answer.secret)


async def enroll(secure: Secure, text: str, names: Names) -> identity_pb2.EnrollResponse:
    ca = grpc.ssl_channel_credentials(secure.authority.ca.read_bytes())
    csr = request(new_key(), names).decode()
    async with aio_channel(f"127.0.0.1:{secure.settings.enroll_port}", credentials=ca) as channel:
        stub: Any = identity_pb2_grpc.EnrollmentServiceStub(channel)
        answer: identity_pb2.EnrollResponse = await stub.Enroll(
            identity_pb2.EnrollRequest(token=text, csr=csr), timeout=15
        )
        return answer


def node(name: str, *ips: str, dns: tuple[str, ...] = ()) -> Names:
    return Names(Identity("node", name), ips, dns)


async def test_a_token_is_good_for_one_of_two_at_once(secure: Secure) -> None:
    text = await token(secure)
    names = node("n1", "127.0.0.1", dns=("localhost",))
    answers = await asyncio.gather(*(enroll(secure, text, names) for _ in range(2)), return_exceptions=True)
    won = [answer for answer in answers if isinstance(answer, identity_pb2.EnrollResponse)]
    lost = [answer for answer in answers if isinstance(answer, grpc.aio.AioRpcError)]
    assert (len(won), [error.code() for error in lost]) == (1, [UNAUTHENTICATED])
    assert names_of(parse_certificate(won[0].certificate.encode())) == names
    assert not (await secure.call("ListJoinTokens", identity_pb2.ListJoinTokensRequest())).tokens
    used = [event for event in await secure.events() if event.action.endswith("/Enroll")]
    assert [event.actor.partition(":")[0] for event in used] == ["token"]
    assert '"hash"' not in used[0].before
    assert "spiffe://aimesh/node/n1" in used[0].after


async def test_a_token_gives_only_what_it_says(secure: Secure) -> None:
    bound, free = await token(secure, "n1", "10.0.0.7", "gpu-7.example"), await token(secure, "")
    assert await refused(enroll(secure, bound, node("n2"))) == DENIED
    assert await refused(enroll(secure, bound, Names(Identity("admin", "n1")))) == DENIED
    assert await refused(enroll(secure, bound, node("n1", "10.0.0.8"))) == DENIED
    assert await refused(enroll(secure, bound, node("n1", dns=("other.example",)))) == DENIED
    assert await refused(enroll(secure, bound[:-1] + "x", node("n1"))) == UNAUTHENTICATED
    assert await refused(enroll(secure, "nonsense", node("n1"))) == UNAUTHENTICATED
    assert (await enroll(secure, bound, node("n1", "10.0.0.7", "127.0.0.1", dns=("gpu-7.example",)))).certificate
    assert (await enroll(secure, free, node("n9"))).certificate


async def test_a_token_ends_when_its_time_is_over_or_it_is_revoked(secure: Secure) -> None:
    asked = identity_pb2.CreateJoinTokenRequest(node_id="n1")
    asked.ttl.FromSeconds(1)
    short, revoked = (await secure.call("CreateJoinToken", asked)).secret, await token(secure)
    await secure.call("RevokeJoinToken", identity_pb2.RevokeJoinTokenRequest(id=revoked.split(".")[1]))
    assert await refused(enroll(secure, revoked, node("n1"))) == UNAUTHENTICATED
    await asyncio.sleep(1.2)  # its time to live is what is tested
    assert await refused(enroll(secure, short, node("n1"))) == UNAUTHENTICATED


async def test_the_port_for_enrolment_serves_nothing_else(secure: Secure) -> None:
    ca = grpc.ssl_channel_credentials(secure.authority.ca.read_bytes())
    channel: Any
    async with aio_channel(f"127.0.0.1:{secure.settings.enroll_port}", credentials=ca) as channel:
        for path, code in (
            ("/aimesh.cluster.v1.ClusterService/GetStatus", grpc.StatusCode.UNIMPLEMENTED),
            ("/grpc.channelz.v1.Channelz/GetServers", UNAUTHENTICATED),
        ):
            assert await refused(channel.unary_unary(path)(b"", timeout=10)) == code


async def test_a_certificate_is_renewed_for_the_same_identity_only(secure: Secure) -> None:
    tls = secure.authority.issue("node", "n1")

    async def renew(names: Names, shown: TlsSettings) -> Any:
        async with secure.caller(shown) as channel:
            stub: Any = identity_pb2_grpc.RenewalServiceStub(channel)
            csr = request(new_key(), names).decode()
            return await stub.Renew(identity_pb2.RenewRequest(csr=csr), timeout=15)

    own = node("n1", "127.0.0.1")
    renewed = parse_certificate((await renew(own, tls)).certificate.encode())
    assert names_of(renewed) == own
    assert await refused(renew(node("n2", "127.0.0.1"), tls)) == DENIED
    assert await refused(renew(node("n1", "10.0.0.1"), tls)) == DENIED
    assert await refused(renew(Names(Identity("admin", "n1")), tls)) == DENIED
    # A user's call comes with the gateway's certificate: it must not give him the gateway's identity.
    gateway = secure.authority.issue("gateway", "g1")
    key = await secure.key("user", scopes.INFER)
    async with secure.caller(gateway, key) as channel:
        stub: Any = identity_pb2_grpc.RenewalServiceStub(channel)
        csr = request(new_key(), Names(Identity("gateway", "g1"))).decode()
        assert await refused(stub.Renew(identity_pb2.RenewRequest(csr=csr), timeout=15)) == DENIED


@pytest.mark.timeout(120)
async def test_the_commands_of_a_new_host(secure: Secure, tmp_path: Path) -> None:
    """An administrator makes a token, the machine enrolls, renews, and is known by its certificate."""
    admin = secure.authority.issue("admin", "root")
    as_admin = {"AIMESH_TLS_CA": str(admin.ca), "AIMESH_TLS_CERT": str(admin.cert), "AIMESH_TLS_KEY": str(admin.key)}
    text = await _aimesh(secure, as_admin, "tokens", "create", "--node-id", "n1")
    out = tmp_path / "tls"
    enroll_at = f"127.0.0.1:{secure.settings.enroll_port}"
    argv = ["enroll", "--coordinator", enroll_at, "--ca", str(admin.ca), "--node-id", "n1", "--ip", "127.0.0.1"]
    await _aimesh(secure, {"AIMESH_JOIN_TOKEN": text.strip()}, *argv, "--out", str(out))
    assert (out / "key.pem").stat().st_mode & 0o077 == 0
    before = (out / "cert.pem").read_bytes()
    config = tmp_path / "agent.toml"
    files = "\n".join(f"{name} = '{out / name}.pem'" for name in ("ca", "cert", "key"))
    config.write_text(
        f"[agent]\nnode_id = 'n1'\ndata_dir = '{tmp_path}'\n"
        f"coordinators = ['{secure.settings.address}']\n[agent.tls]\n{files}\n"
    )
    await _aimesh(secure, {}, "ca", "renew", "--config", str(config))
    assert (out / "cert.pem").read_bytes() != before
    assert "node:n1" in await _aimesh(secure, {"AIMESH_TLS_DIR": str(out)}, "whoami")
    assert "Enroll" in await _aimesh(secure, as_admin, "audit", "list")


async def _aimesh(secure: Secure, environ: dict[str, str], *argv: str) -> str:
    """The standard output of a command that must succeed."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tools.cli.main",
        *argv,
        env={**os.environ, "AIMESH_COORDINATORS": secure.settings.address, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    return output.decode()
