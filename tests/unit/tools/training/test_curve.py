from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from tools.training.curve import draw, extent

FLOATS = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(st.lists(FLOATS, max_size=300), st.integers(2, 60), st.integers(1, 12))
def test_any_curve_fits_its_picture_and_has_no_hole(values: list[float], width: int, height: int) -> None:
    points = [(float(step), value) for step, value in enumerate(values)]
    drawn = draw(points, width, height)
    assert len(drawn) == height
    assert all(len(line) <= width for line in drawn)
    assert all(letter == " " or 0x2800 < ord(letter) <= 0x28FF for line in drawn for letter in line)
    inked = {place for line in drawn for place, letter in enumerate(line) if letter != " "}
    finite = sum(map(math.isfinite, values))
    assert inked == (set() if not finite else {0} if finite == 1 else set(range(width)))


def test_a_falling_line_goes_from_the_top_left_to_the_bottom_right() -> None:
    drawn = draw([(float(x), -x) for x in range(100)], 20, 5)
    assert drawn[0].strip() == drawn[0].rstrip()
    assert len(drawn[-1]) == 20
    starts = [len(line) - len(line.lstrip()) for line in drawn]
    assert starts == sorted(starts)


def test_a_flat_line_is_in_the_middle_and_a_single_point_is_one() -> None:
    drawn = draw([(0, 2.0), (9, 2.0)], 4, 3)
    assert [bool(line) for line in drawn] == [False, True, False]
    assert draw([(5, 1.0)], 4, 1) == ["⠄"]
    assert draw([], 4, 2) == ["", ""]


def test_the_extent_is_of_what_is_finite() -> None:
    assert extent([(0, math.nan), (1, 3.0), (2, -math.inf), (3, 1.0)]) == (1.0, 3.0)
    assert extent([]) == (0.0, 0.0)
