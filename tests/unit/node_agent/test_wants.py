from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from node_agent.wants import LIAR_S, MOST_PEERS, MOST_WANTED, Wants


def wants(count: int, now: list[float] | None = None, peers: set[str] | None = None) -> Wants:
    return Wants(range(count), lambda: (now or [0.0])[0], random.Random(1), peers if peers is not None else set())


@given(st.integers(0, 200), st.randoms())
def test_every_chunk_is_asked_for_until_it_came(count: int, draw: random.Random) -> None:
    left, came = wants(count), list[int]()
    while left.left:
        asked = left.next()
        assert 0 < len(asked) <= MOST_WANTED
        chunk = draw.choice(asked)
        left.start(chunk, "a:1")
        assert chunk not in left.next()
        if draw.random() < 0.3:
            left.failed(chunk)
            assert chunk in left._left
        else:
            left.came(chunk)
            came.append(chunk)
    assert sorted(came) == list(range(count))


def test_agents_that_begin_together_ask_for_different_chunks() -> None:
    first = Wants(range(64), lambda: 0.0, random.Random(1)).next()
    second = Wants(range(64), lambda: 0.0, random.Random(2)).next()
    assert first != second
    assert sorted(first) == sorted(second) == list(range(64))


def test_who_is_avoided_is_avoided_for_a_while() -> None:
    now = [0.0]
    some = wants(1, now)
    some.avoid("a:1", LIAR_S)
    some.avoid("a:1", 1.0)
    assert some.avoided() == ["a:1"]
    now[0] = LIAR_S + 1
    assert some.avoided() == []


def test_no_more_are_named_than_a_request_may() -> None:
    some = wants(1)
    for number in range(2 * MOST_WANTED):
        some.avoid(f"{number}:1", 1.0 + number)
    assert sorted(some.avoided()) == sorted(f"{number}:1" for number in range(MOST_WANTED, 2 * MOST_WANTED))


def test_guesses_try_every_agent_and_then_a_coordinator() -> None:
    some = wants(1, peers={"a:1", "b:1", "c:1"})
    some.avoid("c:1", LIAR_S)
    tried = []
    while guessed := some.guess(4):
        [(chunk, address)] = guessed
        some.start(chunk, address)
        some.failed(chunk)
        tried.append(address)
    assert sorted(tried[:2]) == ["a:1", "b:1"]
    assert tried[2:] == [""]
    some.guess_anew()
    assert some.guess(4)


def test_only_so_many_agents_are_remembered() -> None:
    some = wants(1)
    for number in range(3 * MOST_PEERS):
        some.know([f"{number}:1", "0:1"])
    assert len(some.peers) == MOST_PEERS
