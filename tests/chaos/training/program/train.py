"""The job's own code: a small net in FP64, so that another number of workers changes no digit that is compared.

Each step takes as long as a file says, so that a scenario has its time and the rest of the job does not. With `shared`,
a batch of so many samples does: workers that share it out are faster.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

SAMPLES, FEATURES, LABELS = 960, 16, 4


class Trainer:
    """What lies on which side of three planes."""

    def __init__(self, job: Any) -> None:
        self.seed = job.seed
        self.pace = Path(job.hyperparameters["pace"])
        self.shared = int(job.hyperparameters.get("shared", 0))

    def data(self) -> tuple[Any, Any]:
        generator = np.random.default_rng(self.seed)
        x = generator.normal(size=(SAMPLES, FEATURES))
        return x, (x @ generator.normal(size=(FEATURES, LABELS))).argmax(1)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(FEATURES, 32), nn.Tanh(), nn.Linear(32, LABELS)).double()

    def loss(self, model: nn.Module, batch: Any) -> torch.Tensor:
        share = len(batch[1]) / self.shared if self.shared else 1.0
        time.sleep(float(self.pace.read_text()) * share)
        return functional.cross_entropy(model(batch[0].double()), batch[1])

    def optimizer(self, parameters: Iterable[Any]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.003)

    def scheduler(self, optimizer: torch.optim.Optimizer) -> Any:
        return torch.optim.lr_scheduler.StepLR(optimizer, 50, 0.9)
