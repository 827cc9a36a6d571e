"""Which updates count: what is refused of a client, of an update's header, and of its length.

Pure, but that the file of an update goes that is refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from aimesh.training.v1 import federated_pb2
from meshkit.errors import SupersededError
from training.federated import algorithms
from training.federated.settings import Settings
from training.federated.underway import Open
from training.federated.updates import Lengths, Update
from training.federated.wire import refused

MOST_VALUES = 20
"""Figures that a client may report."""
MOST_NAME = 100
"""Characters of a figure's name."""
MOST_WORDS = 500
"""Characters of why a client cannot answer."""


def check_client(client: int, settings: Settings) -> None:
    """Raises InvalidInputError (BAD_UPDATE) for a client that there is not."""
    if not 0 <= client < settings.clients:
        raise refused(f"client {client} is not one of the {settings.clients} of this job")


def check_samples(client: int, samples: int) -> None:
    """Raises InvalidInputError (BAD_UPDATE) for a client that has none, or says so many that they cannot be."""
    if not 0 < samples < 1 << 48:
        raise refused(f"client {client} has {samples} samples", "a client without data cannot take part")


def check_round(number: int, made: Open, *, closing: bool) -> None:
    """Raises InvalidInputError (BAD_UPDATE) for a round to come, SupersededError (ROUND_OVER) for one that is over."""
    if number > made.number:
        raise refused(f"an update of round {number} came in round {made.number}", "take the round first")
    if number < made.number or closing:
        raise SupersededError(f"round {number} is over", hint="take the next one", reason="ROUND_OVER")


def check_given(client: int, made: Open) -> None:
    """Raises SupersededError (ROUND_OVER) for a client that was chosen and has not been given the round here."""
    if client in made.chosen and client not in made.given:
        raise SupersededError(
            f"client {client} has round {made.number} from an aggregator before this one",
            hint="take it again: its model may be another",
            reason="ROUND_OVER",
        )


def check_header(header: federated_pb2.UpdateHeader, made: Open) -> None:
    """Raises InvalidInputError (BAD_UPDATE) for what a client of this round cannot say of its update."""
    client = header.client
    if client in made.refused:
        raise refused(f"client {client} has been refused in round {header.round}: {made.refused[client]}")
    if client not in made.chosen:
        raise refused(f"client {client} was not chosen for round {header.round}")
    if header.error:
        raise refused(header.error[:MOST_WORDS], "look at the client's log")
    if header.samples != made.given[client]:
        raise refused(f"its weight is {header.samples} samples, and it took the round with {made.given[client]}")
    if not math.isfinite(header.loss):
        raise refused(f"its loss is {header.loss}", "look at the client's data, and lower lr")
    if why := too_many(header.values):
        raise refused(why)


def too_many(values: Mapping[str, float]) -> str:
    """What is wrong about more or longer figures than a client may report, for people; empty when nothing."""
    if len(values) > MOST_VALUES:
        return f"it reports {len(values)} values, and may report {MOST_VALUES}"
    longest = max((len(name) for name in values), default=0)
    return f"a value's name has {longest} characters, and may have {MOST_NAME}" if longest > MOST_NAME else ""


def check_length(update: Update, median: Lengths, settings: Settings) -> None:
    """Raises InvalidInputError (BAD_UPDATE) for an update that is far longer than the last round's.

    Clipping bounds what is private: what is refused by the others' lengths would tell of them.
    """
    why = algorithms.too_long(update.lengths, median, settings.most_norm)
    if why and not settings.private:
        update.drop()
        raise refused(why, "look at the client's data and learning rate; federated.most_norm is the bound")


def screen(made: Open, median: Lengths, settings: Settings) -> None:
    """Refuses held updates that are too long: by the last round's median, of a first round by its own."""
    if not median.model:
        median = algorithms.median_lengths(
            [update.lengths for update in list(made.taken.values())]
        )  # one may come meanwhile
    for client, update in list(made.taken.items()):
        if why := algorithms.too_long(update.lengths, median, settings.most_norm):
            del made.taken[client]
            update.drop()
            made.deny(client, why)
