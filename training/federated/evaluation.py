"""After the last round, where data is the clients' own: what each measures of the last model on samples it holds out.

No process, no clock, no network, as rounds.py.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from aimesh.training.v1 import federated_pb2
from meshkit.errors import SupersededError
from training.federated import screening
from training.federated.closing import weighted
from training.federated.settings import Settings
from training.federated.wire import Tensors, refused

LOSS = "loss"
"""What the worst client is known by: it is the one figure whose direction is known, and every trainer has it."""


@dataclass(frozen=True)
class Answer:
    """What one client measured."""

    samples: int
    """That it holds out."""
    values: Mapping[str, float]


@dataclass(frozen=True)
class Evaluated:
    """What came of it."""

    values: Mapping[str, float]
    """Means over clients by name, weighted by the samples that each holds out."""
    worst: int | None
    """The client with the highest loss; None when nobody measured anything."""
    worst_values: Mapping[str, float]
    measured: int
    """Clients whose figures are in it."""
    left_out: Mapping[int, str]
    """Why a client's figures are not, by client."""

    def results(self) -> dict[str, float]:
        """As metrics of the job: `loss`, `accuracy` …, the same as `worst_loss` …, `worst_client`, and who counted."""
        found = {**self.values, **{f"worst_{name}": value for name, value in self.worst_values.items()}}
        if self.worst is not None:
            found["worst_client"] = float(self.worst)
        return found | {"clients_evaluated": float(self.measured), "clients_left_out": float(len(self.left_out))}


class Evaluation:
    """Where the last model is given out and what clients measured is taken."""

    def __init__(self, settings: Settings, number: int, model: Tensors, now_s: float, away: Collection[int]) -> None:
        """`number` rounds have made the model. Clients of `away` are not waited for unless they come: see Desk.away."""
        self.model = model
        self._settings = settings
        self._number = number
        self._ends_s = now_s + settings.deadline_s
        self._away = set(away)
        self._answers: dict[int, Answer] = {}
        self._refused: dict[int, str] = {}
        self._over = False

    def take(self, client: int, now_s: float) -> federated_pb2.Round | None:
        """What a client is to do, or None when it has answered or it is too late. Raises InvalidInputError."""
        screening.check_client(client, self._settings)
        self._away.discard(client)
        if self._over or client in self._answers or client in self._refused:
            return None
        said = federated_pb2.Round(number=self._number, evaluation=True)
        said.deadline.FromNanoseconds(int(max(0.0, self._ends_s - now_s) * 1e9))
        return said

    def answer(self, client: int, samples: int, values: Mapping[str, float]) -> None:
        """Takes what a client measured; the same once more changes nothing.

        Raises InvalidInputError (BAD_UPDATE) for what cannot be, after which the client has had its say, and
        SupersededError (ROUND_OVER) when it is too late.
        """
        screening.check_client(client, self._settings)
        if self._over:
            raise SupersededError("the evaluation is over", hint="the job is done", reason="ROUND_OVER")
        if client in self._answers or client in self._refused:
            return
        if why := _wrong(samples, values):
            self._refused[client] = why
            raise refused(f"client {client}: {why}", "look at the samples that this client holds out")
        self._answers[client] = Answer(samples, dict(values))

    def ready(self, now_s: float) -> bool:
        """Whether all who are there have answered, or the deadline is over."""
        done = self._answers.keys() | self._refused.keys() | self._away
        return len(done) == self._settings.clients or now_s >= self._ends_s

    def close(self) -> Evaluated:
        """What has come; what comes later is too late."""
        self._over = True
        told = {client: answer for client, answer in sorted(self._answers.items()) if answer.samples}
        worst = max(told, key=lambda client: told[client].values[LOSS], default=None)
        return Evaluated(
            values=weighted([(answer.samples, answer.values) for answer in told.values()]),
            worst=worst,
            worst_values={} if worst is None else told[worst].values,
            measured=len(told),
            left_out={client: self._why(client) for client in range(self._settings.clients) if client not in told},
        )

    def _why(self, client: int) -> str:
        if client in self._refused:
            return self._refused[client]
        if client in self._answers:
            return "it holds no samples out"
        if client in self._away:
            return "it has not come since it failed or let a round's deadline pass"
        return f"it did not answer within {self._settings.deadline_s:g} s"


def _wrong(samples: int, values: Mapping[str, float]) -> str:
    """What cannot be in an answer, for people; empty when nothing."""
    if not 0 <= samples < 1 << 48:
        return f"it says that it holds {samples} samples out"
    if why := screening.too_many(values):
        return why
    if samples and LOSS not in values:
        return f"it measured {', '.join(sorted(values)) or 'nothing'} on {samples} samples, and no {LOSS}"
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    return f"its {bad[0]} of the last model is {values[bad[0]]}" if bad else ""
