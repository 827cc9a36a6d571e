from __future__ import annotations

import hashlib
import io
import sys
import time
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.blobs import CHUNK_BYTES
from meshkit.errors import UnavailableError
from meshkit.process import ProcessId
from tools.cli.upload import upload_pieces
from tools.local.board import Board
from tools.local.children import Child
from tools.local.keeper import Keeper, child_environment, describe_exit, last_lines, rotate_log, start_error
from tools.local.layout import Layout
from tools.local.record import MeshRecord


def test_logs_move_on_and_the_oldest_goes(tmp_path: Path) -> None:
    log = tmp_path / "etcd.log"
    for number in range(6):
        log.write_text(str(number))
        rotate_log(log, kept=3)
    assert sorted((path.name, path.read_text()) for path in tmp_path.iterdir()) == [
        ("etcd.log.1", "5"),
        ("etcd.log.2", "4"),
        ("etcd.log.3", "3"),
    ]


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    assert last_lines(log) == []
    log.write_bytes(b"\xff\n" + b"".join(b"line %d\n" % number for number in range(100_000)))
    assert last_lines(log, 2) == ["line 99998", "line 99999"]


def test_a_start_error_shows_the_log_and_where_it_is(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text("it went wrong\n")
    error = start_error("node-1", "it ended with status 3", log)
    assert "node-1" in error.message
    assert "it went wrong" in error.message
    assert str(log) in error.hint


def test_exits_in_words() -> None:
    assert describe_exit(3) == "status 3"
    assert describe_exit(-9) == "signal SIGKILL"


def test_children_do_not_speak_to_systemd_nor_hear_etcds_variables() -> None:
    environ = {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "1", "ETCD_NAME": "x", "PATH": "/bin"}
    assert child_environment(environ) == {"PATH": "/bin"}


async def test_a_child_that_dies_at_once_is_an_error_with_its_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identify = ProcessId.of

    def too_late(pid: int) -> ProcessId:
        deadline = time.monotonic() + 5
        while psutil.pid_exists(pid) and time.monotonic() < deadline:
            time.sleep(0.001)
        return identify(pid)

    monkeypatch.setattr(ProcessId, "of", too_late)
    child = Child("etcd", (sys.executable, "-c", "raise SystemExit(3)"), None, grace_s=1.0)
    board = Board(MeshRecord(Layout(tmp_path, 8600, 1)), lambda record: None)
    with pytest.raises(UnavailableError, match="etcd did not start: it ended with status 3"):
        await Keeper(child, tmp_path / "etcd.log", board).run()


@given(size=st.sampled_from([0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES + 5]), part=st.floats(0, 1))
def test_an_upload_sends_the_rest_in_small_pieces(size: int, part: float) -> None:
    content = bytes(index % 251 for index in range(1000)) * (size // 1000 + 1)
    offset = int(size * part)
    told: list[int] = []
    pieces = list(upload_pieces(io.BytesIO(content[:size]), hashlib.sha256(b"").hexdigest(), offset, size, told.append))
    assert (pieces[0].offset, pieces[0].size, len(pieces[0].digest)) == (offset, size, 64)
    assert not any(piece.digest for piece in pieces[1:])
    assert b"".join(piece.data for piece in pieces) == content[offset:size]
    assert all(len(piece.data) <= CHUNK_BYTES for piece in pieces)
    assert told[-1] == size
