"""The two sides of Flower in the comparison of federated rounds: `python -m tools.bench.federated_peers ROLE FOLDER`.

Model, data, the clients' training and seeds are those of the job in the folder's task.json, as our own sides have them.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from aimesh.training.v1 import federated_pb2, training_pb2


def _simulation(folder: Path) -> Any:
    """The job's model, data and clients, as both systems have them."""
    import torch

    from training.federated.simulation import Simulation

    torch.set_num_threads(1)
    task = json_format.Parse((folder / "task.json").read_text(), training_pb2.TrainingTask())
    return task, Simulation(task.spec, folder)


def flower_server(folder: Path) -> None:
    """Flower's FedAvg over gRPC, evaluated on the same held-out samples."""
    import flwr
    from flwr.server.strategy import FedAvg

    from training.federated import local
    from training.run.finish import evaluate

    task, ours = _simulation(folder)
    names, count = list(ours.desk.state.model), int(task.spec.federated.clients)
    points = (folder / "points.jsonl").open("w", buffering=1)

    def measured(number: int, arrays: list[Any], _: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
        local.load(ours.model, dict(zip(names, arrays, strict=True)))
        found = evaluate(ours.entry, ours.kept, ours.model, ours.group)
        if number:
            points.write(json.dumps({"at": time.time(), "accuracy": found["accuracy"]}) + "\n")
        return found["loss"], {}

    strategy = FedAvg(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=count,
        min_available_clients=count,
        evaluate_fn=measured,
        on_fit_config_fn=lambda number: {"round": number},
        initial_parameters=flwr.common.ndarrays_to_parameters(list(ours.desk.state.model.values())),
    )
    config = flwr.server.ServerConfig(num_rounds=int(task.spec.steps))
    flwr.server.start_server(server_address=task.rendezvous, config=config, strategy=strategy)


def flower_clients(folder: Path) -> None:
    """All clients as threads of one process; they train one after the other, as ours do."""
    from flwr.client import NumPyClient, start_client

    from training.federated import local, sampling

    task, ours = _simulation(folder)
    names, turn = list(ours.desk.state.model), threading.Lock()

    class Client(NumPyClient):  # type: ignore[misc]
        def __init__(self, share: Any) -> None:
            self.share = share

        def fit(self, parameters: list[Any], config: Mapping[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
            given = dict(zip(names, parameters, strict=True))
            seed = sampling.client_seed(task.spec.seed, int(config["round"]), self.share.client)
            said = federated_pb2.Round(number=int(config["round"]), local_epochs=1, seed=seed)
            with turn:
                trained = local.train(ours.entry, ours.model, self.share.learn, said, given, {}, ours.group)
            return [given[name] + trained.difference[name] for name in names], len(self.share.learn), {}

    def run(share: Any) -> None:
        start_client(server_address=task.rendezvous, client=Client(share).to_client(), max_retries=60)

    _wait_for(task.rendezvous)
    threads = [threading.Thread(target=run, args=(share,)) for share in ours.shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _wait_for(target: str) -> None:
    host, _, port = target.rpartition(":")
    for _ in range(600):
        try:
            with socket.create_connection((host, int(port)), 1):
                return
        except OSError:
            time.sleep(0.1)


ROLES = {"server": flower_server, "clients": flower_clients}

if __name__ == "__main__":
    role, folder = sys.argv[1:]
    ROLES[role](Path(folder))
