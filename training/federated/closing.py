"""How a round's updates become the next model, by the job's settings. Pure, but for the files that updates lie in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from aimesh.training.v1 import training_pb2
from training.federated import algorithms, privacy
from training.federated.settings import Settings
from training.federated.state import Global
from training.federated.underway import Closed, Open
from training.federated.updates import Update
from training.federated.wire import Layout


def holds(settings: Settings, state: Global) -> bool:
    """Whether updates stay in their files until the round's end: the trimmed mean needs them side by side, and a first
    round has no earlier one whose median could bound them."""
    trims = settings.aggregation == training_pb2.AGGREGATION_TRIMMED_MEAN
    return trims or (not settings.private and not state.median.model)


def count(made: Open, update: Update, settings: Settings) -> None:
    """Adds an update to the round's sum. Raises OSError."""
    weight = 1.0 if settings.private else float(update.samples)
    made.total.add(update, weight, algorithms.clip_scale(update.lengths.model, settings.clip))


def close(made: Open, settings: Settings, state: Global, layout: Layout, noise: np.random.Generator) -> Closed:
    """The state after a round, and what is said of it; its updates' files are gone. Raises OSError.

    `layout` is the updates', with control variates where there are; `noise` is where privacy's noise comes from.
    """
    mean = _mean(made, settings, state, layout, noise)
    updates = list(made.taken.values())
    for update in updates:
        update.drop()
    after = _after(made, updates, mean, settings, state)
    return Closed(
        state=after,
        clients=len(updates),
        refused=dict(made.refused),
        samples=sum(update.samples for update in updates),
        steps=sum(update.steps for update in updates),
        length=math.sqrt(sum(float((mean[name] ** 2).sum()) for name in state.model)),
        epsilon=epsilon(settings, after),
    )


def epsilon(settings: Settings, state: Global) -> float:
    """What the privacy accountant says of all rounds until a state; infinite without noise."""
    if not settings.private:
        return math.inf
    return privacy.epsilon(settings.fraction, settings.noise, state.releases, settings.delta)


def _mean(made: Open, settings: Settings, state: Global, layout: Layout, noise: np.random.Generator) -> algorithms.Mean:
    if settings.aggregation == training_pb2.AGGREGATION_TRIMMED_MEAN:
        return algorithms.trimmed_mean(list(made.taken.values()), layout, settings.trim, settings.clip)
    if holds(settings, state):
        for client in sorted(made.taken):
            count(made, made.taken[client], settings)
    if not settings.private:
        return made.total.mean()
    expected = settings.fraction * settings.clients
    return algorithms.noisy(made.total.mean(expected), settings.noise * settings.clip / expected, noise)


def _after(made: Open, updates: Sequence[Update], mean: algorithms.Mean, settings: Settings, state: Global) -> Global:
    control = state.control
    samples = sum(update.samples for update in updates)
    known_samples = {**state.samples, **{update.client: update.samples for update in updates}}
    if settings.scaffold and updates:
        before, after = (algorithms.population(known, settings.clients) for known in (state.samples, known_samples))
        control = algorithms.controlled(control, mean, samples, before, after)
    return Global(
        round=made.number,
        model=algorithms.stepped(state.model, mean, settings.server_learning_rate),
        control=control,
        median=algorithms.median_lengths([update.lengths for update in updates]) if updates else state.median,
        counted={**state.counted, **dict.fromkeys(made.taken, made.number)},
        samples=known_samples,
        releases=state.releases + settings.private,
        loss=sum(update.loss * update.samples for update in updates) / samples if samples else state.loss,
        values=weighted([(update.samples, update.values) for update in updates]),
    )


def weighted(said: Sequence[tuple[int, Mapping[str, float]]]) -> dict[str, float]:
    """The mean of each figure over those who measured it, weighted by their samples; names in order."""
    found = {}
    for name in sorted({name for _, values in said for name in values}):
        those = [(samples, values[name]) for samples, values in said if name in values]
        found[name] = sum(samples * value for samples, value in those) / sum(samples for samples, _ in those)
    return found
