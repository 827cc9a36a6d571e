"""What snapshots share is made once, and forgotten when a whole generation did without it."""

from __future__ import annotations

from coordinator.xds.memo import Memo


def test_a_result_is_made_once_for_as_long_as_every_generation_asks() -> None:
    made: list[tuple[str, bool]] = []

    def make(name: str, *, http: bool) -> list[str]:
        made.append((name, http))
        return [name]

    memo = Memo(make)
    first = memo("a", http=True)
    for _ in range(3):
        memo.turn()
        assert memo("a", http=True) is first
    assert memo("a", http=False) is not first
    assert made == [("a", True), ("a", False)]


def test_what_nobody_asks_for_is_forgotten() -> None:
    memo = Memo(lambda number: number)
    for number in range(100):
        memo.turn()
        memo(number)
    assert len(memo) == 2
