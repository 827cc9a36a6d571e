"""Plans a job on this machine, as an agent would: the job's code runs here, nothing is trained. Needs torch."""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.training.needs import RUNTIME, fitting, least_workers
from coordinator.training.reserved import Taken, taken_by
from meshkit.errors import InvalidInputError, PreconditionError
from tools.training.pack import Packed
from training.plan.explain import Share, explain


@dataclass(frozen=True)
class Planned:
    """What planning gave."""

    spec: training_pb2.JobSpec
    plan: training_pb2.JobPlan
    shares: Sequence[Share]
    possible: Mapping[int, Sequence[Share]] = field(default_factory=dict)
    """Of a model's file: the shares under every other strategy of several workers that can be used."""


def plan_here(
    packed: Packed,
    nodes: Sequence[training_pb2.Worker],
    table: training_pb2.StrategyTable | None,
    seen: Callable[[str], object] = str,
) -> Planned:
    """The plan of a job with these nodes and what was learned; `seen` is told what comes next.

    Without nodes, as many as the job asks for, all alike. What the job's code prints goes to standard error. Raises
    InvalidInputError for a job that cannot be, PreconditionError without torch.
    """
    planner = _planner()
    task = training_pb2.TrainingTask(kind=training_pb2.TASK_KIND_PLAN, spec=packed.spec, workers=nodes)
    task.strategies.CopyFrom(table or training_pb2.StrategyTable())
    with tempfile.TemporaryDirectory(prefix="aimesh-plan-") as folder, contextlib.redirect_stdout(sys.stderr):
        lay_out(packed, Path(folder))
        try:
            plan = planner(Path(folder), task, None, seen)
        except SystemExit as error:
            raise InvalidInputError(
                f"the job's code called exit({error.code!r})", hint="let it return", reason="BAD_TRAINER"
            ) from None
    return Planned(packed.spec, plan, explain(packed.spec, plan, chosen(packed.spec, plan, nodes)))


def plan_model(path: Path, spec: training_pb2.JobSpec, samples: int, nodes: Sequence[training_pb2.Worker]) -> Planned:
    """The plan of a job that would train the model in a file or folder, of which nothing is loaded or run.

    Needs no torch. Raises InvalidInputError for a file that says too little, PATH_MISSING, and STRATEGY_REFUSED.
    """
    from training.analyse.file import analyse_file
    from training.strategy.job import plan_job

    analysis = analyse_file(path, samples, gpu=spec.resources.gpus > 0)
    plan = plan_job(spec, analysis, nodes, training_pb2.StrategyTable())

    def shares(strategy: training_pb2.Strategy.ValueType, workers: int) -> list[Share]:
        other = training_pb2.JobPlan()
        other.CopyFrom(plan)
        other.strategy, other.workers = strategy, workers
        return explain(spec, other, chosen(spec, other, nodes))

    others = [each for each in plan.options if each.step_s and each.workers > 1 and each.strategy != plan.strategy]
    possible: dict[int, Sequence[Share]] = {each.strategy: shares(each.strategy, each.workers) for each in others}
    return Planned(spec, plan, shares(plan.strategy, plan.workers), possible)


def lay_out(packed: Packed, folder: Path) -> None:
    """Code and data as agents lay them out in a worker's folder. Base models are not fetched."""
    if packed.spec.HasField("code"):
        with zipfile.ZipFile(io.BytesIO(packed.contents[packed.spec.code.archive])) as archive:
            archive.extractall(folder / "code")
    (folder / "data").mkdir()
    for shard in packed.spec.data.shards:
        (folder / "data" / shard.name).symlink_to(packed.paths[shard.digest].absolute())


def alike(count: int) -> list[training_pb2.Worker]:
    """So many nodes that nobody has seen, on different machines."""
    return [
        training_pb2.Worker(rank=number, node=f"node-{number + 1}", address=f"node-{number + 1}")
        for number in range(count)
    ]


def nodes_of(
    status: cluster_pb2.Status, jobs: Sequence[training_pb2.Job] = (), gpus: int = 0
) -> list[training_pb2.Worker]:
    """The nodes of a mesh that can take workers: ready, not drained, with torch. What they have free beside replicas,
    as these were measured, and beside these jobs, for one worker with so many GPUs.
    """
    fit = [
        each
        for each in status.nodes
        if each.node.state == membership_pb2.NODE_STATE_READY and not each.drained and RUNTIME in each.node.runtimes
    ]
    taken: dict[str, Taken] = {}
    for job in jobs:
        for node, took in taken_by(job).items():
            taken.setdefault(node, Taken()).add(took)
    return [_free(rank, each, taken.get(each.node.id, Taken()), gpus) for rank, each in enumerate(fit)]


def chosen(
    spec: training_pb2.JobSpec, plan: training_pb2.JobPlan, nodes: Sequence[training_pb2.Worker]
) -> list[training_pb2.Worker]:
    """The nodes that would have the workers of a plan at this moment, by rank; none when there are too few.

    Those with most memory, as the mesh takes them that knows nothing of the job.
    """
    job = training_pb2.Job(spec=spec, plan=plan)
    most = sorted(nodes, key=lambda node: (-node.memory_bytes, node.node))[: plan.workers or 1]
    if len(most) < least_workers(job):
        return []
    most = most[: fitting(job, len(most))]
    made = []
    for rank, node in enumerate(sorted(most, key=lambda node: node.rank)):
        made.append(training_pb2.Worker())
        made[-1].CopyFrom(node)
        made[-1].rank = rank
    return made


def _free(rank: int, each: cluster_pb2.NodeStatus, taken: Taken, gpus: int) -> training_pb2.Worker:
    node, used = each.node, {gpu.index: gpu.memory_used_bytes for gpu in each.load.gpus}
    replicas = sum(model.measured_memory_bytes for model in node.report.models)
    free = sorted(
        max(0, gpu.memory_bytes - used.get(gpu.index, 0)) for gpu in node.capacity.gpus if gpu.index not in taken.gpus
    )
    return training_pb2.Worker(
        rank=rank,
        node=node.id,
        address=node.address,
        memory_bytes=max(1, node.capacity.memory_bytes - replicas - taken.memory),
        gpu_memory_bytes=free[-gpus] if 0 < gpus <= len(free) else 0,
        cpu_cores=max(0.0, node.capacity.cpu_cores - taken.cores),
        agent_port=node.port,
    )


def _planner() -> Callable[..., training_pb2.JobPlan]:
    try:
        import torch  # noqa: F401 - first, so that its absence is not taken for a fault of the job's code
    except ImportError as error:
        raise PreconditionError(
            f"planning looks at the model with torch, which is not here: {error}", hint="pip install 'aimesh[train]'"
        ) from None
    from training.planner import plan_folder

    return plan_folder
