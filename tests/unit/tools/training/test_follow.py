"""A mesh that goes away while a job is followed: the command ends, and says why."""

from __future__ import annotations

import socket
import time

import pytest

from meshkit.errors import UnavailableError
from tools.cli import client, train_follow
from tools.cli.target import Mesh


def test_who_watches_a_mesh_that_is_gone_hears_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_TIMEOUT_S", 0.1)
    monkeypatch.setattr(train_follow, "AGAIN_S", 0.05)
    monkeypatch.setattr(train_follow, "_PATIENCE_S", 0.3)
    with socket.socket() as held:  # bound, so that nobody listens there
        held.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="no coordinator answers"):
            train_follow.follow_quietly(Mesh((f"127.0.0.1:{held.getsockname()[1]}",), "", None, None), "digits")
    assert time.monotonic() - began > 0.3, "it is tried again for as long as a leader may take to come"
