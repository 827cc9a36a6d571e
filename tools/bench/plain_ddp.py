"""The same model, data, batches and optimizer as a job's, in a loop of plain PyTorch, as torchrun starts it.

    python -m torch.distributed.run --nproc-per-node 2 -m tools.bench.plain_ddp spec.json steps

Rank 0 prints the seconds of each step as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from google.protobuf import json_format
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from aimesh.training.v1 import training_pb2
from training.building import build
from training.data.order import Order, holdout


def main() -> None:
    """Trains so many steps."""
    spec = json_format.Parse(Path(sys.argv[1]).read_text(), training_pb2.JobSpec())
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    distributed.init_process_group("gloo")
    with tempfile.TemporaryDirectory() as folder:
        took = train(spec, int(sys.argv[2]), Path(folder))
    if distributed.get_rank() == 0:
        print(json.dumps(took))  # the answer
    distributed.destroy_process_group()


def train(spec: training_pb2.JobSpec, steps: int, folder: Path) -> list[float]:
    """Seconds of each step on this rank, the loss read as a training loop reads it."""
    trainer = build(spec, folder)
    samples = trainer.samples()
    assert samples is not None
    kept, _ = holdout(spec.seed, len(samples), spec.data.holdout)
    order = Order(spec.seed, len(kept), spec.batch_size)
    model = DistributedDataParallel(trainer.model(), gradient_as_bucket_view=True)
    optimizer = trainer.optimizer(model.parameters())
    rank, world = distributed.get_rank(), distributed.get_world_size()
    took = []
    for step in range(steps):
        began = time.monotonic()
        share = kept[order.batch(step)][rank::world]
        loss = trainer.loss(model, samples.batch(share))
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimizer.step()
        loss.item()
        took.append(time.monotonic() - began)
    return took


if __name__ == "__main__":
    main()
