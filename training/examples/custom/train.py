"""A trainer of one's own: which of two moons a point belongs to. See training/trainer.py for all that there may be."""

from __future__ import annotations

import numpy as np
import torch
from moons import moons
from torch import nn
from torch.nn import functional


class Trainer:
    """Data, model, loss, optimizer, metric and export, each in a few lines. The loop is the mesh's."""

    clip_norm = 5.0

    def __init__(self, job):
        self.job = job
        self.settings = {"samples": 2000, "noise": 0.15, "width": 32, "lr": 0.01, **job.hyperparameters}

    def data(self):
        """x [samples, 2] and y [samples], made with the job's seed: the same on every worker."""
        generator = np.random.default_rng(self.job.seed)
        return moons(generator, self.settings["samples"], self.settings["noise"])

    def model(self):
        """New weights; the mesh has set the seed."""
        width = self.settings["width"]
        return nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))

    def loss(self, model, batch):
        """The mean over the batch."""
        x, y = batch
        return functional.binary_cross_entropy_with_logits(model(x).squeeze(-1), y)

    def optimizer(self, parameters):
        """Instead of AdamW."""
        return torch.optim.SGD(parameters, lr=self.settings["lr"], momentum=0.9, nesterov=True)

    def evaluate(self, model, batch):
        """Beside the loss, of samples that were held out."""
        x, y = batch
        return {"accuracy": ((model(x).squeeze(-1) > 0) == (y > 0.5)).double().mean()}

    def served(self, model):
        """What the registry gets: a probability instead of a score."""
        return Served(model)


class Served(nn.Module):
    """[batch, 2] points in, the probability of the second moon out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        """See the class."""
        return {"probability": self.model(x).squeeze(-1).sigmoid()}
