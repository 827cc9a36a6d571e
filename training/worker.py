"""One worker of a job: `python -m training.worker FOLDER`. What lies in its folder: training/contract.py."""

from __future__ import annotations

from aimesh.training.v1 import training_pb2
from training.process import Process, run


def work(process: Process) -> None:
    """Trains, or takes part in a federated job."""
    if process.task.plan.strategy == training_pb2.STRATEGY_FEDERATED:
        from training.federated.client import take_part

        if process.wait_for_go():
            take_part(process)
    else:
        from training.run.loop import train
        from training.run.preload import preload

        preload(process.task)
        train(process)


if __name__ == "__main__":
    run(work)
