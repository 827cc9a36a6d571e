"""The rounds of a job: who takes part, whose answer counts, when it is enough, and what becomes of it.

No process, no clock, no network: the aggregator and the simulation both go by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from aimesh.training.v1 import federated_pb2, training_pb2
from meshkit.errors import InvalidInputError, SupersededError
from training.federated import algorithms, privacy, sampling
from training.federated.settings import Settings
from training.federated.state import Global
from training.federated.updates import Incoming, Lengths, Total, Update
from training.federated.wire import CONTROL, Layout, Tensors, layout_of, refused, with_control

_MOST_VALUES = 20
"""Figures that a client may report."""


@dataclass
class _Open:
    """A round under way."""

    number: int
    chosen: list[int]
    total: Total
    started_s: float | None
    """When its deadline began to run: a client was there. None before."""
    turn: int = 0
    given: dict[int, int] = field(default_factory=dict)
    """Samples of each client that has been given the round."""
    taken: dict[int, Update] = field(default_factory=dict)
    """Updates that count, by client; their files are there only while they are held."""
    refused: dict[int, str] = field(default_factory=dict)
    """Why an update does not count, by client."""


@dataclass(frozen=True)
class Closed:
    """A round that is over."""

    state: Global
    clients: int
    refused: Mapping[int, str]
    samples: int
    steps: int
    length: float
    """Of the mean update."""
    epsilon: float
    """What the privacy accountant says; infinite without noise."""


class Desk:
    """Where rounds are given out and updates taken. Not for several threads at once."""

    def __init__(
        self, settings: Settings, state: Global, trained: Sequence[str], folder: Path, noise: np.random.Generator
    ) -> None:
        """`trained` are the names of the parameters; updates lie in `folder` while they come.

        `noise` is where privacy's noise comes from: it must be secret, so it is never a function of the job's seed.
        """
        self.settings = settings
        self.state = state
        self.layout = layout_of(state.model)
        self.update_layout: Layout = with_control(self.layout, trained) if settings.scaffold else self.layout
        self.closing = False
        """Whether the round is being made the next model: no update counts any more."""
        self._folder = folder
        self._noise = noise
        self._anyone = False
        self._files = 0
        folder.mkdir(parents=True, exist_ok=True)
        self._open = self._begin(None)

    @property
    def number(self) -> int:
        """Of the round under way."""
        return self._open.number

    @property
    def drawn(self) -> int:
        """Clients that are drawn for the round under way."""
        return len(self._open.chosen)

    @property
    def started_s(self) -> float | None:
        """When a client was first there for the round under way, by the clock of `take`; None before."""
        return self._open.started_s

    def take(self, client: int, samples: int, now_s: float) -> federated_pb2.Round | None:
        """The round for a client, or None when nothing is wanted of it now.

        Raises InvalidInputError (BAD_UPDATE) for a client that there is not, or that has no samples.
        """
        if not 0 <= client < self.settings.clients:
            raise refused(f"client {client} is not one of the {self.settings.clients} of this job")
        if not 0 < samples < 1 << 48:
            raise refused(f"client {client} has {samples} samples", "a client without data cannot take part")
        self._anyone = True
        made = self._open
        if made.started_s is None:
            made.started_s = now_s
        if self.closing or client not in made.chosen or client in made.taken or client in made.refused:
            return None
        made.given[client] = samples
        said = federated_pb2.Round(
            number=made.number,
            local_epochs=self.settings.local_epochs,
            seed=sampling.client_seed(self.settings.seed, made.number, client),
            proximal=self.settings.proximal,
            scaffold=self.settings.scaffold,
            counted=self.state.counted.get(client, 0),
        )
        left = max(0.0, made.started_s + self.settings.deadline_s - now_s)
        said.deadline.FromNanoseconds(int(left * 1e9))
        return said

    def begin(self, header: federated_pb2.UpdateHeader) -> Incoming | None:
        """An update begins; None when this client's is there already.

        Raises InvalidInputError (BAD_UPDATE), after which the client has had its say in this round, or SupersededError
        (ROUND_OVER).
        """
        made, client = self._open, header.client
        if header.job != self.settings.job:
            raise refused(f"an update of job {header.job!r} came to {self.settings.job!r}")
        if not 0 <= client < self.settings.clients:
            raise refused(f"client {client} is not one of the {self.settings.clients} of this job")
        self._check_round(header.round)
        if client in made.taken:
            return None
        if client in made.chosen and client not in made.given:
            raise SupersededError(
                f"client {client} has round {made.number} from an aggregator before this one",
                hint="take it again: its model may be another",
                reason="ROUND_OVER",
            )
        try:
            self._check_header(header)
        except InvalidInputError as error:
            self.refuse(header, error.message)
            raise
        self._files += 1
        return Incoming(self._folder / f"{made.number}-{client}-{self._files}", self.update_layout, header)

    def add(self, update: Update) -> int:
        """Takes a whole update of this round; gives how many there are now.

        Raises InvalidInputError (BAD_UPDATE) when it is too long, SupersededError when the round is over, OSError.
        """
        made = self._open
        self._check_round(update.round)
        if update.client in made.taken:
            update.drop()
        elif self._holds:
            made.taken[update.client] = update
        else:
            self._check_length(update)
            made.total.add(update, self._weight(update), self._scale(update))
            made.taken[update.client] = update
            update.drop()
        return len(made.taken)

    def refuse(self, header: federated_pb2.UpdateHeader, why: str) -> None:
        """A client's update of this round does not count: the round waits for it no longer."""
        if header.round == self.number and header.client not in self._open.taken:
            self._open.refused.setdefault(header.client, f"client {header.client}: {why}")

    def ready(self, now_s: float) -> bool:
        """Whether the round can be closed. Draws more clients in when it is late and too few have answered.

        Raises InvalidInputError (UPDATES_REFUSED) when nobody is left who could make it enough.
        """
        made = self._open
        waiting = [client for client in made.chosen if client not in made.taken and client not in made.refused]
        late = made.started_s is not None and now_s >= made.started_s + self.settings.deadline_s
        if waiting and not late:
            return False
        if self._holds:
            self._screen()
        if len(made.taken) >= self._needed:
            return True
        self._draw_more(now_s, waiting)
        return False

    def close(self) -> Closed:
        """Makes the next model of what has come. Raises OSError."""
        made, settings, state = self._open, self.settings, self.state
        mean = self._mean()
        control = state.control
        if settings.scaffold and made.taken:
            control = algorithms.controlled(control, mean, len(made.taken), settings.clients)
        model = algorithms.stepped(state.model, mean, settings.server_learning_rate)
        updates = list(made.taken.values())
        for update in updates:
            update.drop()
        samples = sum(update.samples for update in updates)
        after = Global(
            round=made.number,
            model=model,
            control=control,
            median=algorithms.median_lengths([update.lengths for update in updates]) if updates else state.median,
            counted={**state.counted, **dict.fromkeys(made.taken, made.number)},
            releases=state.releases + settings.private,
            loss=sum(update.loss * update.samples for update in updates) / samples if samples else state.loss,
            values=_means(updates),
        )
        return Closed(
            state=after,
            clients=len(updates),
            refused=dict(made.refused),
            samples=samples,
            steps=sum(update.steps for update in updates),
            length=math.sqrt(sum(float((mean[slot.name] ** 2).sum()) for slot in self.layout)),
            epsilon=self._epsilon(after),
        )

    def advance(self, closed: Closed, now_s: float) -> None:
        """Goes on with the next round."""
        self.state = closed.state
        self.closing = False
        self._open = self._begin(now_s if self._anyone else None)

    @property
    def epsilon(self) -> float:
        """What the privacy accountant says of all rounds until now; infinite without noise."""
        return self._epsilon(self.state)

    def tensors(self) -> Tensors:
        """What clients are sent with the round: the model, with SCAFFOLD its control variate too."""
        return {**self.state.model, **{CONTROL + name: array for name, array in self.state.control.items()}}

    @property
    def taken(self) -> Mapping[int, Update]:
        """Updates of the round under way that count so far, by client."""
        return self._open.taken

    def _begin(self, started_s: float | None) -> _Open:
        number, settings = self.state.round + 1, self.settings
        if settings.private:
            chosen = sampling.chosen_each(settings.seed, number, settings.clients, settings.fraction)
        else:
            chosen = sampling.chosen(settings.seed, number, settings.clients, settings.fraction, settings.min_clients)
        return _Open(number, list(chosen), Total(self.update_layout), started_s)

    @property
    def _needed(self) -> int:
        """Answers that make the round. Clients that are drawn each by itself may be fewer than are asked for."""
        least = self.settings.min_clients
        return min(least, len(self._open.chosen)) if self.settings.private else least

    @property
    def _holds(self) -> bool:
        """Whether updates stay in their files until the end: the trimmed mean needs them side by side, and a first
        round has no earlier one whose median could bound them."""
        trims = self.settings.aggregation == training_pb2.AGGREGATION_TRIMMED_MEAN
        return trims or (not self.settings.private and not self.state.median.model)

    def _epsilon(self, state: Global) -> float:
        settings = self.settings
        if not settings.private:
            return math.inf
        return privacy.epsilon(settings.fraction, settings.noise, state.releases, settings.delta)

    def _weight(self, update: Update) -> float:
        return 1.0 if self.settings.private else float(update.samples)

    def _scale(self, update: Update) -> float:
        return algorithms.clip_scale(update.lengths.model, self.settings.clip)

    def _mean(self) -> algorithms.Mean:
        made, settings = self._open, self.settings
        if settings.aggregation == training_pb2.AGGREGATION_TRIMMED_MEAN:
            return algorithms.trimmed_mean(list(made.taken.values()), self.update_layout, settings.trim, settings.clip)
        if self._holds:
            for client in sorted(made.taken):
                update = made.taken[client]
                made.total.add(update, self._weight(update), self._scale(update))
        if not settings.private:
            return made.total.mean()
        expected = settings.fraction * settings.clients
        mean = made.total.mean(expected)
        return algorithms.noisy(mean, settings.noise * settings.clip / expected, self._noise)

    def _screen(self) -> None:
        """Refuses held updates that are too long: by the last round's median, of a first round by its own."""
        made = self._open
        median = self.state.median
        if not median.model:
            median = algorithms.median_lengths([update.lengths for update in made.taken.values()])
        for client, update in list(made.taken.items()):
            if why := algorithms.too_long(update.lengths, median, self.settings.most_norm):
                del made.taken[client]
                update.drop()
                made.refused[client] = f"client {client}: {why}"

    def _draw_more(self, now_s: float, waiting: Sequence[int]) -> None:
        """The round is late, or all have answered, and it is not enough."""
        made, settings = self._open, self.settings
        if not settings.private and len(made.chosen) < settings.clients:
            made.turn += 1
            more = sampling.chosen(
                settings.seed, made.number, settings.clients, settings.fraction, settings.min_clients, made.turn
            )
            made.chosen = list(more)
            made.started_s = now_s
        elif not waiting and made.refused:
            raise InvalidInputError(
                f"round {made.number}: {len(made.taken)} updates count and {self._needed} are needed; refused: "
                f"{'; '.join(list(made.refused.values())[:3])}",
                hint="look at these clients' code and data; most_norm bounds the length of updates",
                reason="UPDATES_REFUSED",
            )

    def _check_round(self, number: int) -> None:
        if number > self.number:
            raise refused(f"an update of round {number} came in round {self.number}", "take the round first")
        if number < self.number or self.closing:
            raise SupersededError(f"round {number} is over", hint="take the next one", reason="ROUND_OVER")

    def _check_header(self, header: federated_pb2.UpdateHeader) -> None:
        client = header.client
        if client in self._open.refused:
            raise refused(f"client {client} has been refused in round {header.round}: {self._open.refused[client]}")
        if client not in self._open.chosen:
            raise refused(f"client {client} was not chosen for round {header.round}")
        if header.samples != self._open.given[client]:
            known = self._open.given[client]
            raise refused(f"its weight is {header.samples} samples, and it took the round with {known}")
        if not math.isfinite(header.loss):
            raise refused(f"its loss is {header.loss}", "look at the client's data, and lower lr")
        if len(header.values) > _MOST_VALUES:
            raise refused(f"it reports {len(header.values)} values", f"at most {_MOST_VALUES}")

    def _check_length(self, update: Update) -> None:
        """Clipping bounds what is private; what is refused by the others' lengths would tell of them."""
        why = algorithms.too_long(update.lengths, self.state.median, self.settings.most_norm)
        if why and not self.settings.private:
            update.drop()
            raise refused(why, "look at the client's data and learning rate; federated.most_norm is the bound")


def _means(updates: Sequence[Update]) -> dict[str, float]:
    """What clients measured on their own held-out samples, weighted by the samples that they learn from."""
    names = {name for update in updates for name in update.values}
    found = {}
    for name in sorted(names):
        those = [update for update in updates if name in update.values]
        weight = sum(update.samples for update in those)
        found[name] = sum(update.values[name] * update.samples for update in those) / weight
    return found


def fresh(model: Tensors, trained: Sequence[str], settings: Settings) -> Global:
    """The state before the first round."""
    control = {name: np.zeros_like(model[name]) for name in trained} if settings.scaffold else {}
    return Global(round=0, model=model, control=control, median=Lengths())
