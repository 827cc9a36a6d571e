"""What clients do: against training in one place, and against the formulas of the papers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aimesh.training.v1 import federated_pb2, training_pb2
from meshkit.errors import InvalidInputError
from tests.unit.inference.needs import without_torch

pytestmark = without_torch
SGD = {"hidden": "[8]", "optimizer": '"sgd"', "momentum": "0", "lr": "0.5"}


def spec(**said: Any) -> training_pb2.JobSpec:
    federated = said.pop("federated", {})
    return training_pb2.JobSpec(
        task="classifier",
        data=said.pop("data", training_pb2.Data(builtin="iris")),
        hyperparameters={**SGD, **said.pop("hyperparameters", {})},
        steps=3,
        batch_size=said.pop("batch_size", 1000),
        seed=5,
        federated=training_pb2.Federated(**{"clients": 3, **federated}),
        **said,
    )


def test_one_step_on_all_data_of_each_client_is_a_step_of_training_in_one_place(tmp_path: Path) -> None:
    import torch

    from training.federated.simulation import Simulation

    uneven = training_pb2.Data(builtin="iris", partition=training_pb2.Partition(kind="dirichlet", alpha=0.3))
    simulation = Simulation(spec(data=uneven), tmp_path)
    assert len({len(share.learn) for share in simulation.shares}) > 1
    model = simulation.entry.model()
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    samples = simulation.entry.samples()
    assert samples is not None
    batch = samples.batch(np.arange(len(samples)))
    for _ in range(3):
        simulation.round()
        optimizer.zero_grad()
        torch.autograd.backward(simulation.entry.loss(model, batch))
        optimizer.step()
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(simulation.desk.state.model[name], tensor.numpy(), rtol=1e-4, atol=1e-6)


def round_of(simulation: Any, **said: Any) -> federated_pb2.Round:
    return federated_pb2.Round(number=1, local_epochs=2, seed=9, **said)


def test_scaffolds_new_variate_is_its_option_two_and_its_step_is_corrected(tmp_path: Path) -> None:
    from training.federated import local
    from training.federated.simulation import Simulation
    from training.federated.wire import CONTROL

    simulation = Simulation(spec(batch_size=20, federated={"aggregation": training_pb2.AGGREGATION_SCAFFOLD}), tmp_path)
    start = dict(simulation.desk.state.model)
    generator = np.random.default_rng(1)
    own, server = (
        {name: generator.normal(0, 0.1, array.shape).astype(np.float32) for name, array in start.items()}
        for _ in range(2)
    )
    given = {**start, **{CONTROL + name: array for name, array in server.items()}}
    share = simulation.shares[0]
    said = round_of(simulation, scaffold=True)
    trained = local.train(simulation.entry, simulation.model, share.learn, said, given, own, simulation.group)
    assert trained.steps == 2 * -(-len(share.learn) // 20)
    for name in start:
        # x - y over K * lr, where the difference is y - x.
        expected = own[name] - server[name] - trained.difference[name] / (trained.steps * 0.5)
        np.testing.assert_allclose(trained.control[name], expected, rtol=1e-3, atol=1e-5)


def test_fedprox_holds_a_client_near_the_rounds_model(tmp_path: Path) -> None:
    from training.federated import local
    from training.federated.simulation import Simulation

    simulation = Simulation(spec(batch_size=10), tmp_path)
    start = simulation.desk.tensors()

    def length(proximal: float) -> float:
        said = round_of(simulation, proximal=proximal)
        share = simulation.shares[0]
        trained = local.train(simulation.entry, simulation.model, share.learn, said, start, {}, simulation.group)
        return float(np.sqrt(sum((array.astype(np.float64) ** 2).sum() for array in trained.difference.values())))

    assert length(0.0) == length(0.0), "a round on a client is a function of its seed"
    assert length(1.0) < 0.8 * length(0.0)


def test_a_loss_that_is_no_number_names_round_step_and_samples(tmp_path: Path) -> None:
    from training.federated.simulation import Simulation

    simulation = Simulation(spec(hyperparameters={"lr": "100"}, batch_size=5), tmp_path)
    simulation.desk.state.model["1.weight"][:] = np.float32(3e38)
    with pytest.raises(InvalidInputError, match=r"in round 1, step 1, samples \d+, ") as raised:
        simulation.round()
    assert raised.value.reason == "NOT_FINITE"


def test_what_travels_is_what_is_trained_and_fractions() -> None:
    import torch
    from torch import nn

    from training.federated import local

    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2, dtype=torch.float64))
    model[0].bias.requires_grad_(False)
    tensors = local.travelling(model)
    assert "0.bias" not in tensors
    assert "1.num_batches_tracked" not in tensors
    assert {"1.running_mean", "1.running_var"} <= set(tensors)
    assert tensors["2.weight"].dtype == np.float64
    changed = {name: array + 1 for name, array in tensors.items()}
    local.load(model, changed)
    for name, array in local.travelling(model).items():
        np.testing.assert_array_equal(array, changed[name])
    assert "1.running_mean" not in local.trained_names(model)


def test_clients_of_a_node_have_its_data_and_no_others(tmp_path: Path) -> None:
    from training.building import build
    from training.federated.population import clients_there, shares

    one_set = spec(federated={"clients": 5, "clients_per_node": 2})
    task = training_pb2.TrainingTask(job="j", spec=one_set)
    for rank in range(3):
        task.workers.add(rank=rank)
    assert [list(mine) for mine in clients_there(task)] == [[0, 1], [2, 3], [4]]
    found = {}
    for task.rank in range(3):
        for share in shares(task, build(one_set, tmp_path)):
            found[share.client] = share.learn.indices.tolist()
    assert sorted(number for those in found.values() for number in those) == list(range(150))
    del task.workers[2]  # a node is gone: its clients are, and the others' data is what it was
    task.rank = 1
    assert {share.client: share.learn.indices.tolist() for share in shares(task, build(one_set, tmp_path))} == {
        2: found[2],
        3: found[3],
    }
    np.savez(tmp_path / "own.npz", x=np.zeros((40, 4), np.float32), y=np.arange(40) % 3)
    private = spec(
        data=training_pb2.Data(path=str(tmp_path / "own.npz"), holdout=0.25),
        federated={"clients": 4, "clients_per_node": 2},
    )
    task.spec.CopyFrom(private)
    for task.rank in range(2):
        mine = shares(task, build(private, tmp_path))
        assert [len(share.learn) for share in mine] == [15, 15]
        assert [len(share.kept) for share in mine] == [5, 5]
        assert not set(mine[0].learn.indices) & set(mine[1].learn.indices)
