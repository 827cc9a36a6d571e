"""Holds the record of a rollout against what was promised. Pure: a history in, what is wrong with it out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.chaos.rollouts.history import Answer, History, Wish

TOLERANCE_S = 1.0
"""How long after its weight became 0 a version may still be asked: clients acknowledge in this time."""
HEARSAY_S = 0.25
"""A client may hear of a weight a little before whoever watches etcd here does."""
THROUGH_GATEWAY = "through-gateway"
"""The client whose cohorts stay: programs on xds:/// draw anew each time."""


@dataclass(frozen=True)
class Bars:
    """What a rollout is held to, besides that nothing is lost, wrong or answered by who should not."""

    state: str
    """How it ends: SUCCEEDED, ROLLED_BACK, HELD."""
    takes_over: bool
    """The new version has everything in the end; else all is as it was before."""
    answers: bool = True
    """The new version answers some requests on the way. A shadow never does."""
    mirrored: bool = False
    """Requests are copied to the new version on the way."""
    sticky: bool = False
    """Each caller through the gateway stays with one version while the shares stay."""
    reason: str = ""
    """What the reason of its end names."""


def violations(history: History, bars: Bars) -> list[str]:
    """Everything that is not as promised; empty when all is."""
    return [*_lost(history), *_unreachable(history), *_cohorts(history, bars), *_ending(history, bars)]


def figures(history: History) -> dict[str, float]:
    """What was measured, for the record."""
    took = [answer.end - answer.start for answer in history.answers]
    rollout_s = history.moves[-1].at - history.moves[0].at if history.moves else 0.0
    found = {
        "requests": float(len(history.answers)),
        "requests_per_s": len(history.answers) / max(1e-3, history.ended - history.began),
        "lost": float(sum(answer.code != "OK" for answer in history.answers)),
        "wrong": float(sum(answer.code == "OK" and not answer.right for answer in history.answers)),
        "unreachable": float(len(strays(history))),
        "by_new": float(sum(answer.version == history.new for answer in history.answers)),
        "slowest_s": max(took, default=0.0),
        "rollout_s": rollout_s,
        "leaders_killed": float(sum(event.fault for event in history.events)),
        "starved": starved(history),
    }
    if (caught_s := _caught_s(history)) is not None:
        found["caught_s"] = caught_s
    return {key: round(value, 3) for key, value in found.items()}


def starved(history: History) -> float:
    """The share of the machine that others had, 0 to 1."""
    whole = history.ended - history.began
    return sum(stall.seconds for stall in history.stalls) / whole if whole > 0 else 0.0


def strays(history: History) -> list[Answer]:
    """Answers of versions that had had no weight for longer than clients may take to hear of it."""
    spans = _reachable(history)
    return [answer for answer in history.answers if answer.version and not _may(history, spans, answer)]


def _caught_s(history: History) -> float | None:
    """From the first request that could reach the new version, or the start, to the decision to go back."""
    back = [move.at for move in history.moves if move.state == "ROLLING_BACK"]
    routed = [wish.at for wish in history.wishes if wish.weights.get(history.new)]
    return back[0] - min([*routed[:1], back[0]]) if back else None


def _reachable(history: History) -> dict[str, list[tuple[float, float]]]:
    """By version, when it had a weight."""
    spans: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for now, ends in _lasting(history):
        for version, weight in now.weights.items():
            if weight:
                spans[version].append((now.at, ends))
    return spans


def _lasting(history: History) -> Iterator[tuple[Wish, float]]:
    """Each wish and when the next one came."""
    for now, later in pairwise(history.wishes):
        yield now, later.at
    if history.wishes:
        yield history.wishes[-1], float("inf")


def _may(history: History, spans: dict[str, list[tuple[float, float]]], answer: Answer) -> bool:
    for began, ended in spans.get(answer.version, ()):
        late = TOLERANCE_S + _stalled(history, ended, answer.start)
        if began <= answer.end + HEARSAY_S and answer.start <= ended + late:
            return True
    return False


def _lost(history: History) -> Iterator[str]:
    if not any(answer.code == "OK" for answer in history.answers):
        yield "no request was answered: nothing was tested"
    wrong = [answer for answer in history.answers if answer.code == "OK" and not answer.right]
    if wrong:
        yield f"{len(wrong)} answers are wrong, the first from {wrong[0].version} to {wrong[0].client}"
    lost = [answer for answer in history.answers if answer.code != "OK"]
    if lost:
        kinds = Counter(f"{each.client} {each.code}: {each.message}" for each in lost).most_common(3)
        first = lost[0].start - history.began
        yield f"{len(lost)} of {len(history.answers)} requests lost, the first begun {first:.2f} s in: {kinds}"


def _unreachable(history: History) -> Iterator[str]:
    if found := strays(history):
        who = Counter((each.client, each.version) for each in found).most_common(3)
        first = found[0].start - history.began
        yield f"{len(found)} answers of versions without a weight, the first begun {first:.2f} s in: {who}"


def _cohorts(history: History, bars: Bars) -> Iterator[str]:
    if not bars.sticky:
        return
    split = [(now, ends) for now, ends in _lasting(history) if now.sticky and _is_split(now)]
    if not split:
        yield "callers were never kept together"
        return
    for began, ended in _joined(split):
        seen: dict[str, set[str]] = defaultdict(set)
        from_s = began + TOLERANCE_S + _stalled(history, began, began + TOLERANCE_S)
        for answer in history.answers:
            if answer.client == THROUGH_GATEWAY and answer.version and from_s <= answer.start and answer.end <= ended:
                seen[answer.user].add(answer.version)
        if moved := {user: sorted(versions) for user, versions in seen.items() if len(versions) > 1}:
            yield f"{len(moved)} of {len(seen)} callers changed between versions: {dict(sorted(moved.items())[:3])}"
        if len({version for versions in seen.values() for version in versions}) < 2:  # a split has two
            yield f"{len(seen)} callers and no two versions: nothing was tested"


def _is_split(now: Wish) -> bool:
    return sum(weight > 0 for weight in now.weights.values()) > 1


def _joined(split: Sequence[tuple[Wish, float]]) -> list[tuple[float, float]]:
    """Times in which the shares stayed; the replicas may change."""
    found: list[tuple[Wish, float]] = []
    for now, ends in split:
        if found and found[-1][1] == now.at and found[-1][0].weights == now.weights:
            found[-1] = (found[-1][0], ends)
        else:
            found.append((now, ends))
    return [(now.at, ends) for now, ends in found]


def _ending(history: History, bars: Bars) -> Iterator[str]:
    if not history.moves:
        yield "there was no rollout"
        return
    held = [move for move in history.moves if move.state == "HELD"]  # a person takes it back after that
    last = held[0] if bars.state == "HELD" and held else history.moves[-1]
    if last.state != bars.state:
        yield f"it ended {last.state}, not {bars.state}: {last.reason}"
    if bars.reason and bars.reason not in last.reason:
        yield f"its reason does not name {bars.reason}: {last.reason}"
    yield from _final(history, bars)
    if bars.answers and not any(answer.version == history.new for answer in history.answers):
        yield f"{history.new} answered nobody: nothing was tested"
    if bars.mirrored and not any(wish.mirror == history.new for wish in history.wishes):
        yield f"nothing was copied to {history.new}: nothing was tested"


def _final(history: History, bars: Bars) -> Iterator[str]:
    before, after = history.wishes[0], history.wishes[-1]
    want = {history.new: 100} if bars.takes_over else before.weights
    if after.weights != want:
        yield f"in the end the weights are {dict(after.weights)}, not {dict(want)}"
    replicas = sum(after.replicas.values()), sum(before.replicas.values())
    if replicas[0] != replicas[1]:
        yield f"in the end there are {replicas[0]} replicas, not {replicas[1]}"
    if (after.sticky, after.mirror) != (before.sticky, before.mirror):
        yield f"the policy is another than before: sticky {after.sticky!r}, mirror {after.mirror!r}"


def _stalled(history: History, began: float, ended: float) -> float:
    """Seconds that others took of a stretch of time, what was counted just after its end included."""
    return sum(stall.seconds for stall in history.stalls if began <= stall.at <= ended + 0.5)
