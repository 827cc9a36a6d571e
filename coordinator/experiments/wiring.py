"""The experiment parts of one coordinator, wired together."""

from __future__ import annotations

import grpc.aio

from aimesh.experiment.v1 import experiment_pb2_grpc
from coordinator.election import Election
from coordinator.etcd import Etcd
from coordinator.evaluation.datasets import Datasets
from coordinator.evaluation.runner import Evaluator
from coordinator.experiments.asking import Loads, TimedAsker
from coordinator.experiments.evaluate import Evaluation
from coordinator.experiments.quarantine import Quarantines
from coordinator.experiments.runner import Experimenter
from coordinator.experiments.service import ExperimentService
from coordinator.experiments.store import ExperimentStore
from coordinator.experiments.threads import Threaded
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.registry.aliases import Aliases
from coordinator.settings import CoordinatorSettings

SERVICE = "aimesh.experiment.v1.ExperimentService"


class Experiments:
    """`quarantines.check_spec` is a check for rollouts; `runner.run` carries experiments out."""

    def __init__(
        self,
        settings: CoordinatorSettings,
        etcd: Etcd,
        mirror: Mirror,
        election: Election,
        outbox: Outbox,
        loads: Loads,
        datasets: Datasets,
        evaluator: Evaluator,
    ) -> None:
        """Raises InvalidInputError when the database's URL is not understood."""
        url = settings.experiments.url or f"sqlite:///{settings.data_dir / 'experiments.sqlite'}"
        self.quarantines = Quarantines(etcd, mirror, outbox)
        self.runner = Experimenter(
            Threaded(ExperimentStore(url, one_machine=settings.experiments.one_machine)),
            election,
            Evaluation(mirror, loads, settings.scorers_dir),
            TimedAsker(settings.tls),
            Aliases(etcd, mirror, outbox),
            self.quarantines,
            outbox,
        )
        self._service = ExperimentService(self.runner, datasets, evaluator)

    def add_to(self, server: grpc.aio.Server) -> None:
        """Registers the service."""
        experiment_pb2_grpc.add_ExperimentServiceServicer_to_server(self._service, server)

    async def close(self) -> None:
        """Ends the connections to the database."""
        await self.runner.store.close()
