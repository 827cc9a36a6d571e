"""The jobs that scenarios disturb."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from aimesh.training.v1 import training_pb2
from meshkit.files import write_atomically
from tools.training.jobfile import JobFile
from tools.training.pack import Packed, pack

PROGRAM = Path(__file__).parent / "program"
WORKERS = 3
"""One a node."""
STEPS, ROUNDS = 200, 16
EVERY_STEPS = 5
"""Between two checkpoints; a federated job has one each round."""
SLOW_S = 0.2
"""What a step takes at least while things are done to a job: of a round, each of seven batches."""


class Pace:
    """How long a step takes, whatever is computed: in a file that every worker reads at each step."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "pace"
        self.set(0.0)

    def set(self, seconds: float) -> None:
        """From the next step on."""
        write_atomically(self.path, f"{seconds}".encode())


@dataclass(frozen=True)
class Asked:
    """In what the jobs of scenarios differ: their steps are the same."""

    federated: bool = False
    budget: int = 3
    """Of failures."""
    least: int = 2
    """Fewest workers with which it goes on."""
    most: int = WORKERS
    auto: bool = False
    """Whether the planner decides its strategy, of work that pays off to be shared out."""
    deadline_s: int = 30
    """How long a round waits for its clients."""


def job(name: str, pace: Pace, asked: Asked) -> Packed:
    """The job of one scenario, and what is to be uploaded for it."""
    made = training_pb2.JobSpec(name=name, batch_size=48, seed=7, steps=ROUNDS if asked.federated else STEPS)
    made.code.entry = "train:Trainer"
    made.hyperparameters["pace"] = f'"{pace.path}"'
    alone = training_pb2.STRATEGY_SINGLE if asked.most == 1 else training_pb2.STRATEGY_DDP
    made.strategy = training_pb2.STRATEGY_FEDERATED if asked.federated else alone
    if asked.auto:
        made.strategy = training_pb2.STRATEGY_AUTO
        made.hyperparameters["shared"] = f"{made.batch_size}"
    made.resources.min_workers, made.resources.max_workers = asked.least, asked.most
    made.resources.memory_bytes = 512 << 20
    made.restarts.failures = asked.budget
    made.output.discard = True
    if asked.federated:
        made.data.partition.kind = "iid"
        made.federated.clients, made.federated.min_clients = WORKERS, 2
        made.federated.round_deadline.FromSeconds(asked.deadline_s)
    else:
        made.checkpoint.every_steps = EVERY_STEPS
    return pack(JobFile(PROGRAM, made, PROGRAM))
