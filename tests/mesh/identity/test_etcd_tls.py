"""The link between coordinator and etcd, with certificates of the mesh's own authority."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from coordinator.etcd import Etcd, Put
from coordinator.settings import EtcdSettings
from meshkit.errors import UnavailableError
from tests.certificates import TestAuthority
from tests.processes import etcd_server


async def test_a_renewed_certificate_is_taken_up(tmp_path: Path, authority: TestAuthority) -> None:
    """Without a restart: the one in the file has expired, and is replaced."""
    server = authority.issue("etcd", "e1")
    flags = (f"--cert-file={server.cert}", f"--key-file={server.key}", f"--trusted-ca-file={server.ca}")
    with etcd_server(tmp_path / "etcd", *flags, "--client-cert-auth", scheme="https") as started:
        tls = authority.issue("coordinator", "c1", lives=timedelta(seconds=-1))
        settings = EtcdSettings(endpoints=(started.address,), ca=tls.ca, cert=tls.cert, key=tls.key, timeout_s=2.0)
        etcd = Etcd(settings)
        with pytest.raises(UnavailableError):
            await etcd.connect()
        authority.issue("coordinator", "c1")
        assert await etcd.connect()
        assert await etcd.txn([], [Put("/t/a", b"1")]) is not None
        await etcd.close()
