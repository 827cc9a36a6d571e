from __future__ import annotations

from pathlib import Path

import pytest

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from meshkit.errors import InvalidInputError
from tools.training.jobfile import read_job
from tools.training.pack import Packed, pack
from tools.training.planning import alike, chosen, nodes_of, plan_here
from training.plan.explain import explain

EXAMPLES = Path(__file__).parents[4] / "training" / "examples"
NOTHING = training_pb2.StrategyTable()


@pytest.fixture(autouse=True)
def _measure_shortly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.analyse.job.BUDGET_S", 0.05)


def packed(name: str) -> Packed:
    return pack(read_job(EXAMPLES / f"{name}.toml"))


def test_an_example_is_planned_without_a_mesh() -> None:
    seen: list[str] = []
    found = plan_here(packed("pipeline"), alike(2), NOTHING, seen.append)
    assert found.plan.strategy == training_pb2.STRATEGY_PIPELINE
    assert len(found.plan.options) == 6
    assert [layer.name for layer in found.plan.model.layers] == [
        name for share in found.shares for name in share.layers
    ]
    assert seen[0] == "building the trainer"


def test_code_and_data_of_one_s_own_are_looked_at(capfd: pytest.CaptureFixture[str]) -> None:
    assert plan_here(packed("custom"), alike(1), NOTHING).plan.samples == 1500
    assert plan_here(packed("language"), alike(2), None).plan.model.family == "transformer"
    assert capfd.readouterr().out == ""


def test_code_that_ends_the_process_is_an_error_of_the_job(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("print('hello')\nraise SystemExit(3)\n")
    (tmp_path / "job.toml").write_text('name = "n"\nepochs = 1\n[code]\npath = "own.py"\n')
    with pytest.raises(InvalidInputError, match=r"called exit\(3\)"):
        plan_here(pack(read_job(tmp_path / "job.toml")), alike(1), NOTHING)


def test_nodes_that_can_take_workers() -> None:
    status = cluster_pb2.Status()
    for name, state, drained, runtimes in (
        ("a", membership_pb2.NODE_STATE_READY, False, {"training": "2.13.0"}),
        ("b", membership_pb2.NODE_STATE_READY, True, {"training": "2.13.0"}),
        ("c", membership_pb2.NODE_STATE_DEAD, False, {"training": "2.13.0"}),
        ("d", membership_pb2.NODE_STATE_READY, False, {"onnx": "1"}),
    ):
        each = status.nodes.add(drained=drained)
        each.node.id, each.node.state, each.node.port = name, state, 7
        each.node.runtimes.update(runtimes)
        each.node.capacity.memory_bytes = 1 << 30
    [node] = nodes_of(status)
    assert (node.node, node.rank, node.memory_bytes, node.agent_port) == ("a", 0, 1 << 30, 7)


def test_nodes_have_what_replicas_and_jobs_leave() -> None:
    gib = 1 << 30
    status = cluster_pb2.Status()
    each = status.nodes.add()
    each.node.id, each.node.state = "a", membership_pb2.NODE_STATE_READY
    each.node.runtimes["training"] = "2.13.0"
    each.node.capacity.memory_bytes, each.node.capacity.cpu_cores = 8 * gib, 4
    each.node.capacity.gpus.add(index=0, memory_bytes=16 * gib)
    each.node.capacity.gpus.add(index=1, memory_bytes=16 * gib)
    each.load.gpus.add(index=1, memory_used_bytes=6 * gib)
    each.node.report.models.add(measured_memory_bytes=2 * gib)
    job = training_pb2.Job(id="j", phase=training_pb2.JOB_PHASE_TRAINING)
    job.spec.resources.memory_bytes, job.spec.resources.cpu_cores, job.spec.resources.gpus = gib, 1, 1
    job.attempt.workers.add(node="a", gpus=[0])
    [node] = nodes_of(status, [job], gpus=1)
    assert (node.memory_bytes, node.cpu_cores, node.gpu_memory_bytes) == (5 * gib, 3, 10 * gib)
    [node] = nodes_of(status)
    assert (node.memory_bytes, node.cpu_cores, node.gpu_memory_bytes) == (6 * gib, 4, 0)


def test_shares_are_those_of_the_meshs_nodes() -> None:
    nodes = [
        training_pb2.Worker(rank=rank, node=name, memory_bytes=size << 30, speed=speed)
        for rank, (name, size, speed) in enumerate((("a", 8, 100), ("small", 1, 100), ("b", 8, 50)))
    ]
    spec = training_pb2.JobSpec(batch_size=30)
    plan = training_pb2.JobPlan(strategy=training_pb2.STRATEGY_DDP, workers=2, samples=300)
    picked = chosen(spec, plan, nodes)
    assert [(one.rank, one.node) for one in picked] == [(0, "a"), (1, "b")]
    assert [share.samples for share in explain(spec, plan, picked)] == [200, 100]
    spec.resources.min_workers = spec.resources.max_workers = 4
    plan.workers = 4
    assert chosen(spec, plan, nodes) == []
