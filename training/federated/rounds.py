"""The rounds of a job: who takes part, whose answer counts, when it is enough, and what becomes of it.

No process, no clock, no network: the aggregator and the simulation both go by it. Which updates count is decided in
screening.py, how they become the next model in closing.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from aimesh.training.v1 import federated_pb2
from meshkit.errors import InvalidInputError
from training.federated import closing, sampling, screening
from training.federated.settings import Settings
from training.federated.state import Global
from training.federated.underway import Closed, Open
from training.federated.updates import Incoming, Total, Update
from training.federated.wire import CONTROL, Layout, Tensors, layout_of, refused, with_control


class Desk:
    """Where rounds are given out and updates taken. Not for several threads at once."""

    def __init__(
        self, settings: Settings, state: Global, trained: Sequence[str], folder: Path, noise: np.random.Generator
    ) -> None:
        """`trained` are the names of the parameters; updates lie in `folder` while they come.

        `noise` is where privacy's noise comes from, and who takes part then: both must be secret, so neither is ever a
        function of the job's seed.
        """
        self.settings = settings
        self.state = state
        layout = layout_of(state.model)
        self.update_layout: Layout = with_control(layout, trained) if settings.scaffold else layout
        self.closing = False
        """Whether the round is being made the next model: no update counts any more."""
        self.away: set[int] = set()
        """Clients that failed or let a deadline pass and have not come since: they may come, and are not waited for."""
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

    @property
    def taken(self) -> Mapping[int, Update]:
        """Updates of the round under way that count so far, by client."""
        return self._open.taken

    @property
    def waiting(self) -> list[int]:
        """Clients that are drawn for the round under way and have not answered."""
        return self._open.waiting

    @property
    def epsilon(self) -> float:
        """What the privacy accountant says of all rounds until now; infinite without noise."""
        return closing.epsilon(self.settings, self.state)

    def tensors(self) -> Tensors:
        """What clients are sent with the round: the model, with SCAFFOLD its control variate too."""
        return {**self.state.model, **{CONTROL + name: array for name, array in self.state.control.items()}}

    def take(self, client: int, samples: int, now_s: float) -> federated_pb2.Round | None:
        """The round for a client, or None when nothing is wanted of it now.

        Raises InvalidInputError (BAD_UPDATE) for a client that there is not, or that has no samples.
        """
        screening.check_client(client, self.settings)
        screening.check_samples(client, samples)
        self._anyone = True
        self.away.discard(client)
        made = self._open
        if made.started_s is None:
            made.started_s = now_s
        if self.closing or client not in made.waiting:
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
        screening.check_client(client, self.settings)
        screening.check_round(header.round, made, closing=self.closing)
        if client in made.taken:
            return None
        screening.check_given(client, made)
        try:
            screening.check_header(header, made)
        except InvalidInputError as error:
            self.refuse(header, error.message)
            if header.error:
                self.away.add(client)
            raise
        self._files += 1
        return Incoming(self._folder / f"{made.number}-{client}-{self._files}", self.update_layout, header)

    def add(self, update: Update) -> int:
        """Takes a whole update of this round; gives how many there are now.

        Raises InvalidInputError (BAD_UPDATE) when it is too long, SupersededError when the round is over, OSError.
        """
        made = self._open
        screening.check_round(update.round, made, closing=self.closing)
        if update.client in made.taken:
            update.drop()
        elif self._holds:
            made.taken[update.client] = update
        else:
            screening.check_length(update, self.state.median, self.settings)
            closing.count(made, update, self.settings)
            made.taken[update.client] = update
            update.drop()
        return len(made.taken)

    def check_open(self, header: federated_pb2.UpdateHeader) -> None:
        """Raises SupersededError (ROUND_OVER) for an update on its way whose round has been closed meanwhile."""
        screening.check_round(header.round, self._open, closing=self.closing)

    def refuse(self, header: federated_pb2.UpdateHeader, why: str) -> None:
        """A client's update of this round does not count: the round waits for it no longer."""
        if header.round == self.number and header.client not in self._open.taken:
            self._open.deny(header.client, why)

    def ready(self, now_s: float) -> bool:
        """Whether the round can be closed. Draws more clients in when it is late and too few have answered.

        Raises InvalidInputError (UPDATES_REFUSED) when nobody is left who could make it enough.
        """
        made = self._open
        waiting = made.waiting
        if set(waiting) - self.away and not made.late(now_s, self.settings.deadline_s):
            return False
        if self._holds:
            screening.screen(made, self.state.median, self.settings)
        if len(made.taken) >= self._needed:
            return True
        self._draw_more(now_s, waiting)
        return False

    def overdue_s(self, now_s: float) -> float:
        """Seconds since the round's deadline has passed, of a round that is not ready; 0 before."""
        started_s = self._open.started_s
        return 0.0 if started_s is None else max(0.0, now_s - started_s - self.settings.deadline_s)

    def close(self) -> Closed:
        """Makes the next model of what has come. Raises OSError."""
        return closing.close(self._open, self.settings, self.state, self.update_layout, self._noise)

    def advance(self, closed: Closed, now_s: float) -> None:
        """Goes on with the next round."""
        self.state = closed.state
        self.away.update(self._open.waiting)
        self.closing = False
        self._open = self._begin(now_s if self._anyone else None)

    def _begin(self, started_s: float | None) -> Open:
        number, settings = self.state.round + 1, self.settings
        if settings.private:
            chosen = sampling.chosen_each(self._noise, settings.clients, settings.fraction)
        else:
            chosen = sampling.chosen(settings.seed, number, settings.clients, settings.fraction, settings.min_clients)
        return Open(number, list(chosen), Total(self.update_layout), started_s)

    @property
    def _needed(self) -> int:
        """Answers that make the round. Clients that are drawn each by itself may be fewer than are asked for."""
        least = self.settings.min_clients
        return min(least, len(self._open.chosen)) if self.settings.private else least

    @property
    def _holds(self) -> bool:
        return closing.holds(self.settings, self.state)

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
