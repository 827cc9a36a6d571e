"""The same model, data, batches and optimizer as a job's, in a loop of plain PyTorch, as torchrun starts it.

    python -m torch.distributed.run --nproc-per-node 2 -m tools.bench.plain_ddp spec.json

Rank 0 prints a line a step: when it ended (seconds since 1970) and how many seconds it took. It goes on until it is
ended.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from itertools import count
from pathlib import Path

import torch
from google.protobuf import json_format
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from aimesh.training.v1 import training_pb2
from training.building import build
from training.data.order import Order, holdout


def main() -> None:
    """Trains without end."""
    spec = json_format.Parse(Path(sys.argv[1]).read_text(), training_pb2.JobSpec())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    distributed.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as folder:
        train(spec, Path(folder))


def train(spec: training_pb2.JobSpec, folder: Path) -> None:
    """The loss is read as a training loop reads it."""
    trainer = build(spec, folder)
    samples = trainer.samples()
    assert samples is not None
    kept, _ = holdout(spec.seed, len(samples), spec.data.holdout)
    order = Order(spec.seed, len(kept), spec.batch_size)
    model = DistributedDataParallel(trainer.model(), gradient_as_bucket_view=True)
    optimizer = trainer.optimizer(model.parameters())
    rank, world = distributed.get_rank(), distributed.get_world_size()
    for step in count():
        began = time.monotonic()
        share = kept[order.batch(step)][rank::world]
        loss = trainer.loss(model, samples.batch(share))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        loss.item()
        if rank == 0:
            print(f"{time.time():.6f} {time.monotonic() - began:.6f}", flush=True)  # the answer


if __name__ == "__main__":
    main()
