"""What goes to the terminal: other people's text is shown, and orders it nothing."""

from __future__ import annotations

import pytest
from rich.table import Table

from meshkit.errors import InvalidInputError
from tools.cli.output import console, report_error, shown


def test_control_characters_are_shown_and_not_sent(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown("a\x1b[2J\x07\r\n\tä\x9b") == "a\ufffd[2J\ufffd\ufffd\n\tä\ufffd"
    table = Table("from")
    table.add_row("job\x1b]0;title\x07 7")
    console().print(table)
    report_error(InvalidInputError("no \x1b[31mred", hint="\x1b[2J"), as_json=False)
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "job\ufffd]0;title\ufffd 7" in out
    assert "no \ufffd[31mred" in err
