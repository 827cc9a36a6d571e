"""Who fetches which chunk from where: each leaves the coordinators about once."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.tracker import BELIEVED_S, IDLE_S, LONGEST_S, MOST_AT_ONCE, QUIET_S, Ask, Nodes, Tracker

MESH = {f"n{number}": f"10.0.0.{number}:1" for number in range(1, 13)}


class Tracked:
    """A tracker of one blob of 8 chunks, and its clock."""

    def __init__(self, total: int = 8) -> None:
        self.now = 1000.0
        self.total = total
        self.tracker = Tracker(lambda: self.now, random.Random(1))
        self.mesh = dict(MESH)
        self.whole: tuple[str, ...] = ()

    def ask(
        self, node: str, *wanted: int, held: tuple[int, ...] = (), avoid: tuple[str, ...] = (), most: int = 0
    ) -> dict[int, str]:
        ask = Ask(node, wanted, held, frozenset(avoid), most)
        return dict(self.tracker.locate("d", self.total, ask, Nodes(self.mesh, self.whole)).sources)


@pytest.fixture
def blob() -> Tracked:
    return Tracked()


def test_what_nobody_has_goes_to_the_first_who_asks_and_the_others_wait(blob: Tracked) -> None:
    assert blob.ask("n1", 0, 1) == {0: "", 1: ""}
    assert blob.ask("n2", 0, 1, 2) == {2: ""}
    blob.ask("n1", held=(0,))
    assert blob.ask("n2", 0, 1) == {0: MESH["n1"]}


def test_most_limits_what_is_given(blob: Tracked) -> None:
    blob.ask("n1", 0, 1, 2)
    assert blob.ask("n2", 0, 1, 2, 3, 4, 5, most=2) == {3: "", 4: ""}


def test_a_quiet_agent_is_not_waited_for(blob: Tracked) -> None:
    blob.ask("n1", 0)
    blob.now += QUIET_S - 1
    assert blob.ask("n2", 0) == {}
    blob.now += 2
    assert blob.ask("n2", 0) == {0: ""}


def test_one_that_takes_for_ever_is_not_waited_for(blob: Tracked) -> None:
    blob.ask("n1", 0)
    for _ in range(int(LONGEST_S // 2) + 1):
        blob.now += 2
        blob.ask("n1")
    assert blob.ask("n2", 0) == {0: ""}


def test_one_that_asks_again_has_given_up(blob: Tracked) -> None:
    blob.ask("n1", 0)
    blob.ask("n1", 0, most=0)
    blob.ask("n1", 0, 1, most=1)
    assert blob.ask("n2", 0, 1) == {1: ""}


def test_holders_that_left_are_forgotten(blob: Tracked) -> None:
    blob.ask("n1", held=(0,))
    blob.whole = ("n2",)
    assert blob.ask("n3", 0)[0] in (MESH["n1"], MESH["n2"])
    del blob.mesh["n1"], blob.mesh["n2"]
    assert blob.ask("n3", 0) == {0: ""}


def test_one_that_lost_a_chunk_is_no_source_of_it_until_it_has_it_again(blob: Tracked) -> None:
    blob.ask("n1", held=(0,))
    assert blob.ask("n1", 0) == {0: ""}
    assert blob.ask("n2", 0) == {}, "the coordinator sends it to n1"
    blob.ask("n1", held=(0,))
    assert blob.ask("n2", 0) == {0: MESH["n1"]}


def test_one_that_serves_nobody_is_no_source_and_not_waited_for(blob: Tracked) -> None:
    blob.ask("elsewhere", 1, held=(0,))
    blob.now += 1.1
    assert blob.ask("n1", 0, 1) == {0: "", 1: ""}


def test_a_question_costs_about_the_same_however_many_agents_hold_it() -> None:
    blob = Tracked(1)
    blob.mesh = {f"n{number}": f"10.0.{number // 250}.{number % 250}:1" for number in range(1000)}
    for node in blob.mesh:
        blob.ask(node, held=(0,))
    seen = {blob.ask("asking", 0)[0] for _ in range(200)}
    assert len(seen) > 100, "spread over all who have it"


def test_who_holds_all_of_it_is_asked_for_anything(blob: Tracked) -> None:
    blob.whole = ("n5",)
    assert blob.ask("n1", 0, 7) == {0: MESH["n5"], 7: MESH["n5"]}
    assert blob.ask("n5", 0) == {0: MESH["n1"]} or blob.ask("n5", 0) == {0: ""}, "not itself"


def test_the_one_with_least_to_do_is_chosen(blob: Tracked) -> None:
    blob.whole = ("n1", "n2", "n3", "n4")
    given_out = blob.ask("n9", *range(8))
    assert sorted(given_out.values()) == sorted([MESH[each] for each in blob.whole] * 2)


def test_nobody_is_asked_for_too_much_at_once() -> None:
    blob = Tracked(MOST_AT_ONCE + 5)
    blob.whole = ("n1",)
    assert len(blob.ask("n2", *range(MOST_AT_ONCE + 5))) == MOST_AT_ONCE
    assert blob.ask("n3", 0) == {}
    blob.ask("n2", held=(0, 1))
    assert len(blob.ask("n3", 0, 1, 2)) >= 2


def test_complaints(blob: Tracked) -> None:
    liar = MESH["n1"]
    blob.whole = ("n1",)
    assert blob.ask("n2", 0, avoid=(liar,)) == {0: ""}, "not to who complains"
    assert blob.ask("n3", 1) == {1: liar}, "one alone is not believed by others"
    blob.ask("n3", avoid=(liar,))
    assert blob.ask("n4", 2) == {2: ""}
    blob.now += BELIEVED_S + 1
    assert blob.ask("n4", 3) == {3: liar}, "not for ever"


def test_a_blob_that_nobody_asks_about_is_forgotten(blob: Tracked) -> None:
    blob.ask("n1", held=(0,))
    assert len(blob.tracker) == 1
    blob.now += IDLE_S + 1
    blob.tracker.locate("other", 1, Ask("n1"), Nodes(MESH))
    assert len(blob.tracker) == 1
    assert blob.ask("n2", 0) == {0: ""}


@settings(max_examples=50)
@given(agents=st.integers(1, 12), total=st.integers(1, 60), parallel=st.integers(1, 5), seed=st.integers(0, 99))
def test_each_chunk_leaves_the_coordinators_once(agents: int, total: int, parallel: int, seed: int) -> None:
    """A swarm in which nothing fails, whoever is how fast."""
    draw, blob = random.Random(seed), Tracked(total)
    missing = {f"n{number}": set(range(total)) for number in range(1, agents + 1)}
    fetching: dict[str, dict[int, str]] = {node: {} for node in missing}
    untold: dict[str, tuple[int, ...]] = dict.fromkeys(missing, ())
    source, steps = 0, 0
    while any(missing.values()):
        steps += 1
        assert steps < 200 * total * agents, "it comes to an end"
        node = draw.choice(sorted(missing))
        blob.now += 0.001
        if fetching[node] and draw.random() < 0.5:
            chunk = draw.choice(sorted(fetching[node]))
            source += fetching[node].pop(chunk) == ""
            missing[node].discard(chunk)
            untold[node] += (chunk,)
            continue
        wanted = sorted(missing[node] - fetching[node].keys())
        draw.shuffle(wanted)
        free = parallel - len(fetching[node])
        found = blob.ask(node, *(wanted if free else ()), held=untold[node], most=free)
        untold[node] = ()
        assert len(found) <= max(free, 0) or not free
        fetching[node].update(found)
    assert source == total
