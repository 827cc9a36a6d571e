"""The cost model: what must hold of it whatever the work, and figures worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from tests.unit.training.strategy.makers import GIB, basis, work
from training.strategy.cost import STRATEGIES, bubble, estimate, gather, ring
from training.strategy.model import Machine, Network, Rounds

SHARING = [one for one in STRATEGIES if one not in (training_pb2.STRATEGY_SINGLE, training_pb2.STRATEGY_FEDERATED)]
NETWORK = Network(bandwidth=1e9, latency_s=2e-4)


def test_a_ring_by_hand() -> None:
    # 3 workers, 3 MB: 4 messages of 1 MB, each 0.1 ms and 1 ms.
    assert ring(NETWORK, 3, 3e6) == pytest.approx(4 * (1e-4 + 1e-3))
    assert gather(NETWORK, 3, 3e6) == pytest.approx(2 * (1e-4 + 1e-3))
    assert ring(NETWORK, 1, 3e6) == 0


def test_a_bubble_by_hand() -> None:
    assert bubble(8, 4) == pytest.approx(11 / 8)
    assert bubble(5, 1) == 1


def test_one_worker_by_hand() -> None:
    made = estimate(training_pb2.STRATEGY_SINGLE, work(), [Machine()], basis())
    assert made.step_s == pytest.approx(1e-3 + 64 * 3 * 4 * 2 * 1024**2 / 1e10)
    # Weights, gradients and two moments; then four times the weights for the export.
    kept = (4 + 4) * 16 * 1024**2
    assert made.memory_bytes == pytest.approx((512 << 20) + 1.2 * kept, abs=1)


@given(st.sampled_from(SHARING), st.integers(2, 4), st.floats(1e6, 1e11), st.floats(1e-5, 0.1))
def test_a_better_network_is_never_slower(strategy: int, workers: int, bandwidth: float, latency_s: float) -> None:
    machines = [Machine()] * workers
    made = estimate(strategy, work(), machines, basis(bandwidth, latency_s))
    if made.refused:
        return
    better = estimate(strategy, work(), machines, basis(bandwidth * 2, latency_s / 2))
    assert better.step_s <= made.step_s
    assert made.step_s == pytest.approx(made.compute_s + made.network_s + made.idle_s)


@given(st.sampled_from(SHARING), st.integers(2, 4), st.booleans())
def test_nothing_beats_all_machines_at_full_speed(strategy: int, workers: int, gpu: bool) -> None:
    made = estimate(strategy, work(gpu=gpu), [Machine()] * workers, basis(1e15, 0.0))
    alone = estimate(training_pb2.STRATEGY_SINGLE, work(), [Machine()], basis())
    if not made.refused:
        assert made.step_s >= alone.step_s / workers * 0.999


@given(st.integers(2, 4))
def test_shared_weights_take_less_memory(workers: int) -> None:
    machines = [Machine()] * workers
    of = {strategy: estimate(strategy, work(16, 2048), machines, basis()) for strategy in SHARING}
    ddp = of.pop(training_pb2.STRATEGY_DDP)
    assert all(other.memory_bytes < ddp.memory_bytes for other in of.values() if not other.refused)


def test_a_slow_machine_gets_less_of_a_batch_but_holds_up_a_pipeline() -> None:
    machines = [Machine(1.5), Machine(0.5)]
    even = [Machine(), Machine()]
    for strategy, slower in ((training_pb2.STRATEGY_DDP, 1.05), (training_pb2.STRATEGY_PIPELINE, 1.7)):
        ratio = estimate(strategy, work(), machines, basis()).compute_s
        ratio /= estimate(strategy, work(), even, basis()).compute_s
        assert ratio <= slower if strategy == training_pb2.STRATEGY_DDP else ratio >= slower


@pytest.mark.parametrize(
    ("strategy", "workers", "made", "says"),
    [
        (training_pb2.STRATEGY_PIPELINE, 5, work(), "5 pipeline stages are more than the 4 layers"),
        (training_pb2.STRATEGY_TENSOR, 3, work(), "3 workers divide"),
        (training_pb2.STRATEGY_DDP, 3, work(batch=2), "cannot share 2 samples"),
        (training_pb2.STRATEGY_FEDERATED, 2, work(), "not private"),
        (training_pb2.STRATEGY_DDP, 2, work(refused={training_pb2.STRATEGY_DDP: "because"}), "because"),
    ],
)
def test_what_cannot_be_used_says_why(strategy: int, workers: int, made: object, says: str) -> None:
    assert says in estimate(strategy, made, [Machine()] * workers, basis()).refused  # type: ignore[arg-type]


def test_too_little_memory_names_both_figures() -> None:
    big = work(16, 4096)
    made = estimate(training_pb2.STRATEGY_SINGLE, big, [Machine(memory_bytes=2 * GIB)], basis())
    assert "GiB of memory a worker, a node has 2.00 GiB free" in made.refused
    on_gpu = replace(big, gpu=True)
    machine = Machine(memory_bytes=16 * GIB, gpu_memory_bytes=2 * GIB)
    assert "of GPU memory" in estimate(training_pb2.STRATEGY_SINGLE, on_gpu, [machine], basis()).refused


def test_messages_hide_behind_the_way_back_on_gpus_only() -> None:
    machines = [Machine(), Machine()]
    on_cpu = estimate(training_pb2.STRATEGY_DDP, work(), machines, basis())
    on_gpu = estimate(training_pb2.STRATEGY_DDP, work(gpu=True), machines, basis())
    assert on_cpu.network_s > 0
    assert on_gpu.network_s == 0


def test_a_federated_round_grows_with_its_clients_data() -> None:
    private = work(rounds=Rounds(local_epochs=2))
    few = estimate(training_pb2.STRATEGY_FEDERATED, private, [Machine()] * 2, basis())
    many = estimate(training_pb2.STRATEGY_FEDERATED, private, [Machine()] * 4, basis())
    assert few.compute_s > many.compute_s
    assert few.network_s < many.network_s
