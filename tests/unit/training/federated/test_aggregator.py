"""A round for which too few clients answer: it says for whom it waits, and does not wait for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from aimesh.training.v1 import training_pb2
from meshkit.errors import UnavailableError
from tests.unit.inference.needs import without_torch
from tests.unit.training.federated.support import desk, send, update
from training.contract import EventWriter, Folder
from training.federated.service import FederatedRounds
from training.process import Process

pytestmark = without_torch


def test_a_round_that_lacks_answers_names_who_is_missing_and_ends_after_the_jobs_stall_timeout(tmp_path: Path) -> None:
    from training.federated.aggregator import _check_patience, _lacking
    from training.federated.beginning import Run

    made = desk(tmp_path / "updates", clients=3, min_clients=3, deadline_s=30)
    assert made.overdue_s(1000.0) == 0.0, "before anyone is there no deadline runs"
    send(made, 0, update(1.0), now_s=100.0)
    assert made.overdue_s(130.0) == 0.0
    assert made.overdue_s(131.0) == 1.0
    assert not made.ready(131.0)
    task = training_pb2.TrainingTask(job="j")
    task.spec.stall_timeout.FromSeconds(60)
    nothing = cast(Any, None)
    process = Process(Folder(tmp_path), EventWriter(tmp_path), task)
    run = Run(process, nothing, nothing, nothing, FederatedRounds(made, ["node-1", "node-1", "node-2"]))
    assert _lacking(run) == (
        "round 1: 1 updates count after 30 s, and min_clients is 3; it waits for clients 1 on node-1, 2 on node-2"
    )
    _check_patience(run, 59.0)
    with pytest.raises(UnavailableError, match=r"2 on node-2, for 60 s by now") as raised:
        _check_patience(run, 61.0)
    assert raised.value.reason == "TOO_FEW_CLIENTS"
