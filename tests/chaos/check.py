"""Holds a history against the model of a mesh that keeps its word. Pure: a history in, what is wrong with it out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.history import History, Leader, Route

_HEARSAY_S = 0.25


@dataclass(frozen=True)
class Bars:
    """What a scenario is held to. Seconds; what is None is not asked of it."""

    lost: int = 0
    """Requests without an answer, retries on."""
    stale_s: float = 1.0
    """No node answers that has been out of the routes for longer. Infinite where no coordinator is there to say so."""
    converge_s: float = 5.0
    """Everything is as it should be this long after the healing."""
    leaves_s: float | None = None
    """The victim is out of the routes this long after the first fault."""
    stays: bool = False
    """No node that serves is taken out of the routes."""
    keeps: bool = False
    """Every Triton is the same process at the end as at the beginning."""
    calm_s: float | None = None
    """Requests that begin this long after the first fault are answered within `prompt_s`: nothing goes astray."""
    prompt_s: float = 1.0
    """How long a request may take when nothing is wrong; seconds."""
    vacant_s: float | None = None
    """There is a new leader this long after the old one's lease has lapsed or was given up."""
    leaderless_s: float | None = None
    """There is a new leader this long after the first fault."""
    same_leader: bool = False
    """Nobody else leads, from beginning to end."""


def violations(history: History, bars: Bars) -> list[str]:
    """Everything in which the history breaks the model or misses a bar; empty when it is good."""
    found = [*_answers(history, bars), *_stale(history, bars), *_leaders(history), *_epochs(history)]
    found += [*_convergence(history, bars), *_victim(history, bars), *_prompt(history, bars)]
    return [*found, *_succession(history, bars)]


def figures(history: History) -> dict[str, float]:
    """What was measured, for the record: the same numbers that the bars are about."""
    first = _first_fault(history)
    latencies = [request.end - request.start for request in history.requests]
    found = {
        "requests": float(len(history.requests)),
        "lost": float(sum(request.code != "OK" for request in history.requests)),
        "slowest_s": max(latencies, default=0.0),
        "converged_s": max(0.0, converged_at(history) - history.healed),
        "stalled_s": sum(stall.seconds for stall in history.stalls),
        "starved": starved(history),
    }
    if (left := _left_at(history)) is not None:
        found["victim_left_s"] = left - first
    for old, new in _successions(history):
        found["new_leader_s"] = new.at - first
        found["vacant_s"] = new.at - old.at if not old.id else 0.0
    return {key: round(value, 2) for key, value in found.items()}


def starved(history: History) -> float:
    """The share of the machine that others had, 0 to 1."""
    whole = max((stall.at for stall in history.stalls), default=history.began) - history.began
    return sum(stall.seconds for stall in history.stalls) / whole if whole > 0 else 0.0


def converged_at(history: History) -> float:
    """When everything was as it should be, and stayed so; infinity when it never was."""
    last_bad = max((look.at for look in history.looks if look.problems), default=history.healed)
    return min((look.at for look in history.looks if look.at > last_bad), default=float("inf"))


def _answers(history: History, bars: Bars) -> Iterator[str]:
    if not any(request.code == "OK" for request in history.requests):
        yield "no request was answered: nothing was tested"
    wrong = [request for request in history.requests if request.code == "OK" and not request.right]
    if wrong:
        yield f"{len(wrong)} answers are wrong, the first from {wrong[0].node} to {wrong[0].client}"
    lost = [request for request in history.requests if request.code != "OK"]
    if len(lost) > bars.lost:
        kinds = Counter(f"{r.client} {r.code}: {r.message}" for r in lost).most_common(3)
        first = lost[0].start - history.began
        yield f"{len(lost)} of {len(history.requests)} requests lost, the first begun {first:.2f} s in: {kinds}"


def _stale(history: History, bars: Bars) -> Iterator[str]:
    """Answers of nodes that were out of the routes from long before the request began until after it ended.

    A client may hear of a node that is back a little before whoever watches etcd here does.
    """
    changes: dict[str, list[Route]] = defaultdict(list)
    for route in history.routes:
        changes[route.node].append(route)
    for request in history.requests:
        before = [route for route in changes[request.node] if route.at <= request.end + _HEARSAY_S]
        if before and not before[-1].serving:
            out_s = request.start - before[-1].at
            if out_s > bars.stale_s + _stalled(history, before[-1].at, request.start):
                yield f"{request.node} answered {request.client} {out_s:.2f} s after it was out of the routes"
                return  # one is enough to say so


def _leaders(history: History) -> Iterator[str]:
    holders: dict[int, set[str]] = defaultdict(set)
    for leader in history.leaders:
        if leader.id:
            holders[leader.term].add(leader.id)
    for term, ids in holders.items():
        if len(ids) > 1:
            yield f"term {term} has several leaders: {', '.join(sorted(ids))}"
    terms = [leader.term for leader in sorted(history.leaders, key=lambda one: one.revision) if leader.id]
    if terms != sorted(terms):
        yield f"terms do not rise: {terms}"


def _epochs(history: History) -> Iterator[str]:
    last: dict[str, int] = {}
    for node in sorted(history.nodes, key=lambda one: one.revision):
        if node.epoch < last.get(node.node, 0):
            yield f"{node.node}'s epoch fell from {last[node.node]} to {node.epoch}"
        last[node.node] = node.epoch


def _convergence(history: History, bars: Bars) -> Iterator[str]:
    at = converged_at(history)
    limit = bars.converge_s + _stalled(history, history.healed, at)
    if at - history.healed > limit:
        late = [look for look in history.looks if look.problems and look.at > history.healed + bars.converge_s]
        yield f"converged {at - history.healed:.2f} s after the healing, not within {limit:.2f} s: {late[:1]}"


def _victim(history: History, bars: Bars) -> Iterator[str]:
    left, first = _left_at(history), _first_fault(history)
    for route in history.routes:
        if bars.stays and not route.serving:
            yield f"{route.node} left the routes {route.at - first:.2f} s after the first fault, and should stay"
    if bars.keeps:
        pids = {(node.node, node.triton_pid) for node in history.nodes if node.triton_pid}
        changed = sorted(name for name, count in Counter(name for name, _ in pids).items() if count > 1)
        yield from (f"{name} has another Triton than before" for name in changed)
    if bars.leaves_s is None:
        return
    if left is None:
        yield f"{history.roles['victim']} never left the routes"
    elif left - first > bars.leaves_s + _stalled(history, first, left):
        yield f"{history.roles['victim']} left the routes after {left - first:.2f} s, not within {bars.leaves_s} s"


def _left_at(history: History) -> float | None:
    first, victim = _first_fault(history), history.roles.get("victim")
    return min((r.at for r in history.routes if r.node == victim and not r.serving and r.at >= first), default=None)


def _prompt(history: History, bars: Bars) -> Iterator[str]:
    if bars.calm_s is None:
        return
    calm = _first_fault(history) + bars.calm_s
    for request in history.requests:
        took = request.end - request.start
        if request.start >= calm and took > bars.prompt_s + _stalled(history, request.start, request.end):
            yield f"a request of {request.client} begun {request.start - calm + bars.calm_s:.2f} s in took {took:.2f} s"
            return


def _succession(history: History, bars: Bars) -> Iterator[str]:
    first, found = _first_fault(history), _successions(history)
    if bars.same_leader and found:
        yield f"the leader changed: {[new.id for _, new in found]}"
    if (bars.vacant_s is not None or bars.leaderless_s is not None) and not found:
        yield "there never was a new leader"
        return
    for old, new in found:
        if bars.vacant_s is not None and new.at - old.at > bars.vacant_s + _stalled(history, old.at, new.at):
            yield f"{new.at - old.at:.2f} s without a leader after the lease had lapsed, not within {bars.vacant_s} s"
    if bars.leaderless_s is not None:
        new = found[0][1]
        if new.at - first > bars.leaderless_s + _stalled(history, first, new.at):
            yield f"a new leader {new.at - first:.2f} s after the first fault, not within {bars.leaderless_s} s"


def _successions(history: History) -> list[tuple[Leader, Leader]]:
    """Each deletion of the leader's key after the first fault, with the first leader after it."""
    seen = sorted((one for one in history.leaders if one.at >= _first_fault(history)), key=lambda one: one.revision)
    return [(old, new) for old, new in pairwise(seen) if not old.id and new.id]


def _first_fault(history: History) -> float:
    return min((event.at for event in history.events if event.fault), default=history.began)


def _stalled(history: History, began: float, ended: float) -> float:
    """Seconds that others took of a stretch of time, what was counted just after its end included."""
    return sum(stall.seconds for stall in history.stalls if began <= stall.at <= ended + 0.5)
