"""The link between coordinator and etcd, with certificates of the mesh's own authority."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.etcd import Etcd, Put
from coordinator.settings import EtcdSettings
from meshkit.certificates import ETCD_CLIENT
from meshkit.errors import UnavailableError
from meshkit.tls import ROLES
from tests.certificates import TestAuthority
from tests.processes import etcd_server


async def test_a_renewed_certificate_is_taken_up(tmp_path: Path, authority: TestAuthority) -> None:
    """Without a restart: the one in the file has expired, and is replaced."""
    with etcd_server(tmp_path / "etcd", *_flags(authority), scheme="https") as started:
        tls = authority.issue("coordinator", "c1", lives=timedelta(seconds=-1))
        settings = EtcdSettings(endpoints=(started.address,), ca=tls.ca, cert=tls.cert, key=tls.key, timeout_s=2.0)
        etcd = Etcd(settings)
        with pytest.raises(UnavailableError):
            await etcd.connect()
        authority.issue("coordinator", "c1")
        assert await etcd.connect()
        assert await etcd.txn([], [Put("/t/a", b"1")]) is not None
        await etcd.close()


async def test_only_coordinators_and_members_reach_it(tmp_path: Path, authority: TestAuthority) -> None:
    """Who writes to etcd can do everything, and nodes have certificates of the same authority."""
    with etcd_server(tmp_path / "etcd", *_flags(authority), scheme="https") as started:
        for role in ROLES:
            tls = authority.issue(role, "x1")
            etcd = Etcd(
                EtcdSettings(endpoints=(started.address,), ca=tls.ca, cert=tls.cert, key=tls.key, timeout_s=2.0)
            )
            if role in ("coordinator", "etcd"):
                assert await etcd.connect()
            else:
                with pytest.raises(UnavailableError):
                    await etcd.connect()
            await etcd.close()


def _flags(authority: TestAuthority) -> tuple[str, ...]:
    """As `aimesh up --tls` starts it."""
    server = authority.issue("etcd", "e1")
    return (
        f"--cert-file={server.cert}",
        f"--key-file={server.key}",
        f"--trusted-ca-file={server.ca}",
        "--client-cert-auth",
        f"--client-cert-allowed-hostname={ETCD_CLIENT}",
    )
