"""The check itself: it passes a good history, and each kind of bad one fails it with the right words."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.chaos.check import Bars, converged_at, figures, violations
from tests.chaos.history import Event, History, Leader, Look, Node, Request, Route, Stall, read_history

FAULT, HEALED = 101.0, 105.0
STRICT = Bars(leaves_s=1.0, calm_s=1.0, prompt_s=2.0, vacant_s=2.0, leaderless_s=7.0)


def answer(start: float, node: str = "node-2", took: float = 0.01) -> Request:
    return Request("xds", start, start + took, "OK", node, right=True)


def node(revision: int, epoch: int, name: str = "node-1", pid: int = 7) -> Node:
    return Node(100 + revision, revision, name, epoch, "NODE_STATE_READY", pid)


def good() -> History:
    """The leader and the victim die at 101, all is healed at 105 and well at 106."""
    history = History("both", 100.0, HEALED, {"victim": "node-1"})
    history.requests = [answer(100 + step / 10) for step in range(120)]
    history.requests += [answer(100.5, "node-1"), answer(101.3, "node-1"), answer(108.0, "node-1")]
    history.requests += [answer(104.0, "node-1", took=1.9)]  # ended when the node was back
    history.events = [
        Event(99.0, "Arm", "x", fault=False),
        Event(FAULT, "SIGKILL", "node-1"),
        Event(104, "Start", "x", False),
    ]
    history.leaders = [Leader(100.0, 5, 5, "a"), Leader(104.0, 8, 0, ""), Leader(104.5, 9, 9, "b")]
    history.nodes = [node(6, 3), node(10, 8)]
    history.routes = [Route(FAULT + 0.5, "node-1", serving=False), Route(106.0, "node-1", serving=True)]
    history.looks = [Look(100.2, []), Look(104.9, ["bad"]), Look(105.5, ["bad"]), Look(106.0, []), Look(107.0, [])]
    return history


def test_a_good_history_is_good_and_measured() -> None:
    history = good()
    assert violations(history, STRICT) == []
    assert converged_at(history) == 106.0
    measured = figures(history)
    assert measured["lost"] == 0
    assert measured["converged_s"] == 1.0
    assert measured["victim_left_s"] == 0.5
    assert measured["new_leader_s"] == 3.5
    assert measured["vacant_s"] == 0.5


LOST = Request("gateway", 103.0, 103.5, "UNAVAILABLE", message="no route")
WRONG = replace(answer(103.0), right=False)
LATE_LOOKS = [Look(105.5, ["node-1 is DEAD"]), Look(110.5, ["node-1 is DEAD"]), Look(110.6, [])]


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ({"requests": [answer(100.0), LOST]}, "1 of 2 requests lost"),
        ({"requests": [answer(100.0), WRONG]}, "1 answers are wrong"),
        ({"requests": []}, "nothing was tested"),
        ({"requests": [answer(102.6, "node-1")]}, "node-1 answered xds 1.10 s after it was out of the routes"),
        ({"requests": [answer(102.1, took=2.2)]}, "took 2.20 s"),
        (
            {"leaders": [Leader(104.0, 8, 0, ""), Leader(104.5, 9, 9, "b"), Leader(104.6, 10, 9, "c")]},
            "several leaders",
        ),
        ({"leaders": [Leader(104.0, 8, 0, ""), Leader(104.5, 9, 9, "b"), Leader(104.6, 10, 7, "c")]}, "do not rise"),
        ({"leaders": [Leader(104.0, 8, 0, ""), Leader(106.5, 9, 9, "b")]}, "2.50 s without a leader"),
        ({"leaders": [Leader(107.0, 8, 0, ""), Leader(108.5, 9, 9, "b")]}, "7.50 s after the first fault"),
        ({"leaders": []}, "never was a new leader"),
        ({"nodes": [node(6, 8), node(10, 3)]}, "node-1's epoch fell from 8 to 3"),
        ({"looks": LATE_LOOKS}, "converged 5.60 s after the healing"),
        ({"looks": [Look(106.0, ["no leader"])]}, "converged inf s"),
        ({"routes": []}, "never left the routes"),
        ({"routes": [Route(FAULT + 1.5, "node-1", serving=False)]}, "left the routes after 1.50 s"),
    ],
)
def test_each_bad_history_is_told(broken: dict[str, object], says: str) -> None:
    found = violations(replace(good(), **broken), STRICT)  # type: ignore[arg-type]
    assert any(says in each for each in found), found


def test_bars_that_forbid_a_change_hold_it() -> None:
    history = good()
    assert any("should stay" in each for each in violations(history, Bars(stays=True)))
    assert any("leader changed" in each for each in violations(history, Bars(same_leader=True)))
    assert violations(history, Bars(keeps=True)) == []
    history.nodes.append(node(11, 9, pid=8))
    assert violations(history, Bars(keeps=True)) == ["node-1 has another Triton than before"]


def test_what_is_late_while_the_machine_stood_still_proves_nothing() -> None:
    history = replace(good(), looks=LATE_LOOKS)
    assert violations(history, STRICT)
    history.stalls.append(Stall(107.0, 1.0))
    assert violations(history, STRICT) == []


def test_a_history_is_read_as_it_was_written(tmp_path: Path) -> None:
    history = good()
    history.stalls.append(Stall(107.0, 1.0))
    history.write(tmp_path / "history.jsonl")
    read = read_history(tmp_path / "history.jsonl")
    assert figures(read) == figures(history)
    assert sorted(map(str, read.requests)) == sorted(map(str, history.requests))
    assert (read.leaders, read.nodes, read.looks) == (history.leaders, history.nodes, history.looks)
