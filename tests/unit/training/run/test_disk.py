"""Writing where there is no room: what is printed is lost, what is written for torch is no file."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.run.disk import forgiving, whole_file


def write(path: Path, blocks: int, error: Exception | None = None) -> None:
    with whole_file(path) as file:
        for _ in range(blocks):
            file.write(bytes(1 << 14))  # torch must see no error here
        file.seek(0)
        if error is not None:
            raise error


@given(st.text(max_size=40))
def test_what_is_printed_is_written_where_there_is_room(text: str) -> None:
    read, write = os.pipe()
    stream = forgiving(write)
    stream.write(text)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        assert pipe.read() == text.encode("utf-8", "backslashreplace").replace(b"\n", os.linesep.encode())


def test_a_line_for_which_a_log_has_no_room_is_lost_and_no_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    stream = forgiving(full)
    assert stream.write("a line\n") == 7
    stream.flush()
    os.close(full)
    with pytest.raises(OSError, match="Bad file descriptor"):
        stream.write("where nothing is")


def test_a_file_for_which_there_is_no_room_is_removed_and_the_disk_named(tmp_path: Path) -> None:
    path, (soft, hard) = tmp_path / "model.pt2", resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, hard))
    try:
        with pytest.raises(OSError, match=r"model\.pt2") as refused:
            write(path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert refused.value.errno == errno.EFBIG
    assert not path.exists()


def test_an_error_of_who_writes_is_that(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="theirs"):
        write(tmp_path / "a", 1, ValueError("theirs"))
