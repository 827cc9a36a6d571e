"""What every worker of a test imports: the fork server has it, its children need not."""

import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo
import torch.distributed.checkpoint
import torch.nn.parallel

import training.parallel.fsdp
import training.parallel.pipeline
import training.parallel.tensor
import training.run.ddp
import training.run.loop
import training.tasks.arrays
import training.tasks.language  # noqa: F401

torch.set_num_threads(1)
