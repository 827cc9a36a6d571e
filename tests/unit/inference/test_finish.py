"""The process that packs a result: its last word on a full disk."""

from __future__ import annotations

import errno
from pathlib import Path

from inference.finish import main


def test_a_last_word_for_which_the_disk_has_no_room_is_told_by_the_exit_status(tmp_path: Path) -> None:
    assert main(tmp_path) == 1, "there is no task"
    assert "the result cannot be served" in (tmp_path / "finish.jsonl").read_text()
    (tmp_path / "finish.jsonl").unlink()
    (tmp_path / "finish.jsonl").symlink_to("/dev/full")
    assert main(tmp_path) == errno.ENOSPC
