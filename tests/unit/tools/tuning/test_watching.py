"""What is said of a search while it goes on."""

from __future__ import annotations

import pytest

from tools.tuning.course import Outcome
from tools.tuning.search import Going
from tools.tuning.watching import Watching


@pytest.mark.parametrize(("direction", "best"), [("maximize", "best 0.97"), ("minimize", "best 0.1")])
def test_the_best_is_that_of_the_whole_study(direction: str, best: str) -> None:
    watching = Watching("s", "accuracy", direction, 5, 8, 0.97 if direction == "maximize" else 0.1)
    assert watching._far(Going({}, {5: Outcome("complete", 0.9)})).startswith(best)
    assert Watching("s", "accuracy", direction, 0, 8)._far(Going({}, {})) == ""
