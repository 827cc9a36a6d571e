"""What the clients of one node share, and where each of them is."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from torch import nn

from meshkit.backoff import Backoff
from training.federated.population import Share
from training.federated.variates import Variates
from training.process import Process
from training.run.group import Group
from training.trainer import Entry


@dataclass
class Node:
    """What the clients of a node share."""

    process: Process
    entry: Entry
    model: nn.Module
    group: Group
    variates: Variates
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Of the one that trains: they share the model and the node's cores."""


@dataclass
class Client:
    """One client."""

    share: Share
    last_round: int = 0
    refused: int = 0
    """Updates refused one after the other."""
    backoff: Backoff = field(default_factory=lambda: Backoff(first_s=0.1, most_s=2.0))

    @property
    def number(self) -> int:
        """Of the client, in its job."""
        return self.share.client
