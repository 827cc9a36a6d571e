"""Two versions' answers as a report: what each metric is, how well it is known, whether chance explains it. Pure."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from aimesh.experiment.v1 import experiment_pb2
from aimesh.experiment.v1.experiment_pb2 import (
    BETTER_HIGHER,
    BETTER_LOWER,
    BETTER_UNSPECIFIED,
    SECTION_ECONOMIC,
    SECTION_FUNCTIONAL,
    SECTION_NON_FUNCTIONAL,
    Row,
    Value,
)
from coordinator.evaluation.scores import OVERLAP, SCORER, exact_match, overlap, said
from coordinator.experiments.asking import Asked, Sample, Taken
from coordinator.experiments.summary import summary
from coordinator.rollout.stats import bootstrap, effects, fixed
from coordinator.rollout.stats.corrections import holm
from coordinator.rollout.window import BUCKETS_AN_OCTAVE, Window

_DRAWN = 20_000_000
"""Numbers that an interval draws at most, a few tenths of a second's work."""
_QUANTILES = {"latency_p50_ms": 0.50, "latency_p95_ms": 0.95, "latency_p99_ms": 0.99}
Scores = Mapping[str, Sequence[float]]
"""One score a question, the mean of its repeats, by metric."""


def compare(
    expected: Sequence[Any], old: Taken, new: Taken, old_scores: Scores, new_scores: Scores
) -> experiment_pb2.Report:
    """The report, without what was asked for. `expected` are the questions' labels.

    Deterministic: intervals are drawn with a fixed seed.

    What is tested is one number a question: repeats of a question are no questions of their own.
    """
    rows = [
        *_quality(old_scores, new_scores),
        *_sameness(expected, old, new),
        *_latency(old, new),
        *_resources(old, new),
        *_economy(old, new),
    ]
    _correct(rows)
    found = experiment_pb2.Report(baseline=_side(old), candidate=_side(new), rows=rows, notes=_notes(old, new))
    found.summary = summary(found)
    return found


def window(taken: Taken, scores: Scores) -> Window:
    """The same as what a rollout's gates judge. Time is the replicas', so that cost is what an answer cost.

    A question's latency is the median of its repeats: a pause of the machine hits all that is asked at that moment, of
    one version alone, and would look like a longer tail.
    """
    asked = taken.all()
    seconds = sum(taken.seconds)
    replicas = max(1, len(taken.nodes))
    price = taken.price_an_hour
    return Window(
        seconds=seconds,
        requests=len(asked),
        failures=sum(bool(each.error) for each in asked),
        busy_ns=int(seconds * replicas * 1e9),
        latency=_buckets(_by_question(taken, _latency_of)),
        responses=sum(each.parts for each in asked),
        memory_bytes=_mean(sample.memory_bytes for sample in taken.samples),
        gpu_memory_bytes=_mean(sample.gpu_memory_bytes for sample in taken.samples),
        cost=None if price is None else price * seconds / 3600,
        replica_s=seconds * replicas,
        quality=dict(scores),
    )


def mean_scores(rounds: Sequence[Sequence[float]]) -> list[float]:
    """One score a question out of one a question and repeat."""
    return [sum(each) / len(each) for each in zip(*rounds, strict=True)]


def _quality(old: Scores, new: Scores) -> Iterator[Row]:
    for metric in new:
        before, now = old[metric], new[metric]
        own = metric.startswith(SCORER)  # on a scale of its own
        known = [_about(each) if own else _at_most_one(_about(each)) for each in (before, now)]
        row = _row(metric, SECTION_FUNCTIONAL, "" if own else "share", BETTER_HIGHER, *known)
        yield _paired(row, before, now)


def _sameness(expected: Sequence[Any], old: Taken, new: Taken) -> Iterator[Row]:
    """Whether a version gives the same answer each time, and both the same label."""
    if len(new.rounds) > 1:
        before, now = _consistency(old), _consistency(new)
        row = _row("consistency", SECTION_FUNCTIONAL, "share", BETTER_HIGHER, _about(before), _about(now))
        yield _paired(row, before, now)
    both = [
        overlap(*(said(expected, [each.answer for each in one]) for one in pair))
        for pair in zip(old.rounds, new.rounds, strict=True)
    ]
    yield _row(OVERLAP, SECTION_FUNCTIONAL, "share", BETTER_UNSPECIFIED, None, _about(mean_scores(both)))


def _consistency(taken: Taken) -> list[float]:
    """1 for a question that got the same answer in every repeat."""
    first = [each.answer for each in taken.rounds[0]]
    same = [exact_match(first, [each.answer for each in later]) for later in taken.rounds[1:]]
    return [min(each) for each in zip(*same, strict=True)]


def _latency(old: Taken, new: Taken) -> Iterator[Row]:
    before, now = _milliseconds(old), _milliseconds(new)
    for metric, quantile in _QUANTILES.items():
        of = bootstrap.quantile_of(quantile)
        row = _row(metric, SECTION_NON_FUNCTIONAL, "ms", BETTER_LOWER, _about(before, of), _about(now, of))
        tested = quantile == 0.5  # of the distribution as a whole; the tails have their intervals
        yield _unpaired(row, _by_question(old, _latency_of), _by_question(new, _latency_of)) if tested else row


def _resources(old: Taken, new: Taken) -> Iterator[Row]:
    rates = [_rates(each) for each in (old, new)]
    yield _row("throughput_rps", SECTION_NON_FUNCTIONAL, "1/s", BETTER_HIGHER, _spread(rates[0]), _spread(rates[1]))
    before, now = _by_question(old, _failed), _by_question(new, _failed)
    row = _row("error_rate", SECTION_NON_FUNCTIONAL, "share", BETTER_LOWER, _about(before), _about(now))
    yield _paired(row, before, now)
    measured: dict[str, tuple[str, Callable[[Sample], float | None]]] = {
        "memory_bytes": ("bytes", lambda sample: sample.memory_bytes),
        "gpu_memory_bytes": ("bytes", lambda sample: sample.gpu_memory_bytes),
        "node_cpu_cores": ("cores", lambda sample: sample.cpu_cores),
        "node_gpu_utilization": ("share", lambda sample: sample.gpu_utilization),
    }
    for metric, (unit, of) in measured.items():
        values = [_mean(of(sample) for sample in each.samples) for each in (old, new)]
        better = BETTER_LOWER if unit == "bytes" else BETTER_UNSPECIFIED
        if values != [None, None]:
            yield _row(metric, SECTION_NON_FUNCTIONAL, unit, better, _plain(values[0]), _plain(values[1]))


def _economy(old: Taken, new: Taken) -> Iterator[Row]:
    costs = [_cost(each) for each in (old, new)]
    if costs != [None, None]:
        yield _row("cost_per_request", SECTION_ECONOMIC, "cost", BETTER_LOWER, _plain(costs[0]), _plain(costs[1]))
    before, now = _by_question(old, _parts_of), _by_question(new, _parts_of)
    if any(before) or any(now):
        row = _row("tokens_per_answer", SECTION_ECONOMIC, "tokens", BETTER_UNSPECIFIED, _about(before), _about(now))
        yield _unpaired(row, before, now)
        rates = [_tokens(each) for each in (old, new)]
        yield _row("tokens_per_s", SECTION_ECONOMIC, "1/s", BETTER_HIGHER, _spread(rates[0]), _spread(rates[1]))


def _paired(row: Row, old: Sequence[float], new: Sequence[float]) -> Row:
    """Random signs of the differences by question, both ways."""
    if not old or not new:
        return row
    gains = [now - before for before, now in zip(old, new, strict=True)]
    one_way = min(fixed.sign_flip(gains).p_value, fixed.sign_flip([-each for each in gains]).p_value)
    row.p_value, row.effect = min(1.0, 2 * one_way), sum(gains) / len(gains)
    row.test = "random signs, paired by question; effect: difference of the means"
    return row


def _unpaired(row: Row, old: Sequence[float], new: Sequence[float]) -> Row:
    if not old or not new:
        return row
    one_way = min(fixed.mann_whitney(new, old).p_value, fixed.mann_whitney(old, new).p_value)
    row.p_value, row.effect = min(1.0, 2 * one_way), effects.cliffs_delta(new, old)
    row.test = "Mann-Whitney U of the questions' medians; effect: Cliff's delta"
    return row


def _correct(rows: Sequence[Row]) -> None:
    tested = [row for row in rows if row.test]
    for row, adjusted in zip(tested, holm([row.p_value for row in tested]), strict=True):
        row.adjusted_p_value = adjusted


def _row(
    metric: str,
    section: experiment_pb2.Section.ValueType,
    unit: str,
    better: experiment_pb2.Better.ValueType,
    old: Value | None,
    new: Value | None,
) -> Row:
    return Row(
        metric=metric,
        section=section,
        unit=unit,
        better=better,
        baseline=old,
        candidate=new,
        p_value=1.0,
        adjusted_p_value=1.0,
    )


def _about(values: Sequence[float], of: bootstrap.Statistic = bootstrap.mean_of) -> Value | None:
    """A statistic with its interval; None of no values."""
    if not values:
        return None
    draws = max(200, min(bootstrap.DRAWS, _DRAWN // len(values)))
    low, high = bootstrap.interval(values, of, draws=draws)
    import numpy as np

    (value,) = of(np.asarray([values], dtype=float))
    return Value(value=float(value), low=low, high=high)


def _at_most_one(value: Value | None) -> Value | None:
    """Macro averages are means of scaled scores, whose interval may reach beyond what a share can be."""
    if value is not None:
        value.high = min(1.0, value.high)
    return value


def _spread(rates: Sequence[float]) -> Value | None:
    """The mean of the rounds; with several, the least and the greatest."""
    if not rates:
        return None
    mean = sum(rates) / len(rates)
    return Value(value=mean, low=min(rates), high=max(rates)) if len(rates) > 1 else Value(value=mean)


def _plain(value: float | None) -> Value | None:
    return None if value is None else Value(value=value)


def _mean(values: Iterator[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _milliseconds(taken: Taken) -> list[float]:
    return [1000 * each.seconds for each in taken.all() if not each.error]


def _latency_of(asked: Sequence[Asked]) -> float | None:
    times = [1000 * each.seconds for each in asked if not each.error]
    return statistics.median(times) if times else None


def _parts_of(asked: Sequence[Asked]) -> float | None:
    counts = [each.parts for each in asked if not each.error]
    return statistics.median(counts) if counts else None


def _failed(asked: Sequence[Asked]) -> float:
    return sum(bool(each.error) for each in asked) / len(asked)


def _by_question(taken: Taken, of: Callable[[Sequence[Asked]], float | None]) -> list[float]:
    return [value for each in zip(*taken.rounds, strict=True) if (value := of(each)) is not None]


def _rates(taken: Taken) -> list[float]:
    """Answers a second, of each round."""
    return [
        sum(not each.error for each in one) / seconds
        for one, seconds in zip(taken.rounds, taken.seconds, strict=True)
        if seconds > 0
    ]


def _tokens(taken: Taken) -> list[float]:
    return [
        sum(each.parts for each in one) / seconds
        for one, seconds in zip(taken.rounds, taken.seconds, strict=True)
        if seconds > 0
    ]


def _cost(taken: Taken) -> float | None:
    answered = len(_milliseconds(taken))
    if taken.price_an_hour is None or not answered:
        return None
    return taken.price_an_hour * sum(taken.seconds) / 3600 / answered


def _buckets(milliseconds: Sequence[float]) -> dict[int, int]:
    """By time, as in membership.proto."""
    counts = Counter(math.floor(BUCKETS_AN_OCTAVE * math.log2(max(1.0, each * 1000))) for each in milliseconds)
    return dict(sorted(counts.items()))


def _side(taken: Taken) -> experiment_pb2.Side:
    asked = taken.all()
    return experiment_pb2.Side(
        model=taken.version.name,
        version=taken.version.version,
        digest=taken.version.digest,
        requests=len(asked),
        errors=Counter(each.error for each in asked if each.error),
        latency_buckets=_buckets([1000 * each.seconds for each in asked if not each.error]),
        nodes=taken.nodes,
    )


def _notes(old: Taken, new: Taken) -> list[str]:
    notes = []
    if old.nodes != new.nodes:
        notes.append(
            f"the versions answered on different nodes ({', '.join(old.nodes)}; {', '.join(new.nodes)}): "
            "times compare the nodes too"
        )
    if _cost(old) is None or _cost(new) is None:
        notes.append("no cost: the nodes have no label cost_per_hour")
    if not any(sample.memory_bytes for each in (old, new) for sample in each.samples):
        notes.append("no memory: the models run inside Triton's own process, or their nodes do not tell")
    return notes
