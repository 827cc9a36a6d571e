"""How following a job ends, and its figures."""

from __future__ import annotations

import pytest

from tools.cli.interrupt import INTERRUPTED, interruptible
from tools.training.view import figure


def test_ctrl_c_says_what_becomes_of_the_job(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, interruptible("digits-abc", "aimesh train cancel digits-abc"):
        raise KeyboardInterrupt
    assert ended.value.code == INTERRUPTED == 130
    said = capfd.readouterr()
    assert "Stopped watching: digits-abc goes on." in said.err
    assert "aimesh train cancel digits-abc" in said.err
    assert said.out == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, ""), (0.0541234, "0.05412"), (5436.2, "5436"), (17134.9, "17,130"), (1e10, "1e+10"), (float("nan"), "nan")],
)
def test_figures_have_four_digits_that_count(value: float | None, text: str) -> None:
    assert figure(value) == text
