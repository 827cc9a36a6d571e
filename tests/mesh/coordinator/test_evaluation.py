"""An evaluation set put to versions on a real Triton."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.blob_exchange import BlobExchange
from coordinator.election import Election
from coordinator.evaluation.ask import Asker
from coordinator.evaluation.datasets import Datasets
from coordinator.evaluation.runner import Evaluator
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from coordinator.state import State
from meshkit.blobs import BlobStore
from meshkit.errors import InvalidInputError, NotFoundError
from meshkit.tls import TlsSettings
from meshkit.versions import version_digest
from node_agent.plan import READY
from tests.mesh.node_agent.nodes import Node, running_node
from tests.mesh.node_agent.support import add_model
from tests.processes import eventually as holds_within

eventually = partial(holds_within, within_s=60.0)
SIGNATURE = registry_pb2.Signature(
    inputs=[registry_pb2.TensorSpec(name="x", data_type=registry_pb2.DATA_TYPE_INT32, shape=[-1])],
    outputs=[registry_pb2.TensorSpec(name="y", data_type=registry_pb2.DATA_TYPE_INT32, shape=[-1])],
)
FAILS_ON_NINE = 'assert pb_utils.get_input_tensor_by_name(requests[0], "x").as_numpy()[0] != 9'
SCORER = """#!/usr/bin/env python3
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    print(-1 if question["answer"] is None else abs(question["answer"] - question["expected"]))
"""


def put(blobs: BlobStore, text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    blobs.append(digest, text.encode())
    blobs.commit(digest)
    return digest


async def served(node: Node, version: registry_pb2.ModelVersion) -> membership_pb2.Node:
    """The node as coordinators see it once it serves the version."""
    await node.coordinator.assign(version)
    await eventually(lambda: node.coordinator.states().get((version.name, version.version)) == READY)
    return membership_pb2.Node(
        id="node-1",
        address="127.0.0.1",
        state=membership_pb2.NODE_STATE_READY,
        report=node.coordinator.reports[-1],
    )


async def test_versions_answer_their_set_and_are_scored_once(tmp_path: Path) -> None:
    blobs, scorers = BlobStore(tmp_path / "blobs"), tmp_path / "scorers"
    scorers.mkdir()
    (scorers / "off_by").write_text(SCORER)
    (scorers / "off_by").chmod(0o755)
    lines = [{"inputs": {"x": [value]}, "expected": value + 1} for value in (1, 2, 3, 9)]
    dataset = put(blobs, "\n".join(map(json.dumps, lines)))
    evaluation = rollout_pb2.Evaluation(dataset=dataset, output="y", metrics=["accuracy", "scorer:off_by"])
    async with running_node(tmp_path / "data") as node:
        good = node.coordinator.blobs.version("sum", "1.0.0", add_model(1))
        bad = node.coordinator.blobs.version("sum", "2.0.0", add_model(3, request=FAILS_ON_NINE))
        for version in (good, bad):
            version.signature.CopyFrom(SIGNATURE)
            version.digest = version_digest(version)
        spec = rollout_pb2.RolloutSpec(name="sum", version="2.0.0", gates=rollout_pb2.Gates(evaluation=evaluation))
        old = routing_pb2.Deployment(name="sum", targets=[routing_pb2.Target(version="1.0.0", weight=100)])
        rollout = rollout_pb2.Rollout(spec=spec, before=old, state=rollout_pb2.ROLLOUT_STATE_RUNNING)

        def state(*nodes: membership_pb2.Node) -> State:
            return State(
                nodes={each.id: each for each in nodes},
                versions={("sum", each.version): each for each in (good, bad)},
                assignments={"node-1": frozenset({("sum", "1.0.0"), ("sum", "2.0.0")})},
                rollouts={"sum": rollout},
            )

        mirror = SimpleNamespace(state=state(), frozen="")
        peers = Peers(cast(Mirror, mirror), "c1", TlsSettings())
        exchange = BlobExchange(blobs, cast(Mirror, mirror), peers, "c1")
        evaluator = Evaluator(
            cast(Mirror, mirror),
            cast(Election, SimpleNamespace(term=1)),
            Datasets(blobs, exchange),
            Asker(TlsSettings(), deadline_s=20.0),
            scorers,
        )
        await evaluator.check(evaluation, [good, bad])
        await evaluator.step()
        assert evaluator.pending("sum", "1.0.0") == "sum:1.0.0 is being evaluated"

        for version in (good, bad):
            mirror.state = state(await served(node, version))
            await evaluator.step()
            assert evaluator.pending("sum", version.version) == ""
        assert evaluator.scores("sum", "1.0.0") == {"accuracy": [1.0] * 4, "scorer:off_by": [0.0] * 4}
        assert evaluator.scores("sum", "2.0.0") == {
            "accuracy": [0.0] * 4,
            "scorer:off_by": [2.0, 2.0, 2.0, -1.0],
            "overlap": [0.0] * 4,
        }
        asked = await node.agent.triton.client.executions("sum")
        await evaluator.step()
        assert await node.agent.triton.client.executions("sum") == asked, "what is known is not asked again"

        # A node that is not there any more: said, and tried again later.
        evaluation.output = "z"
        rollout.spec.gates.evaluation.CopyFrom(evaluation)
        mirror.state.serving["sum", "2.0.0"][0].report.triton.grpc_port = 1
        await evaluator.step()
        assert "could not be evaluated" in evaluator.pending("sum", "2.0.0")

        with pytest.raises(InvalidInputError, match="has no output 'z'"):
            await evaluator.check(evaluation, [bad])
        other = put(blobs, '{"inputs": {"w": [1]}, "expected": 1}')
        with pytest.raises(InvalidInputError, match="question 1 of the evaluation set has the inputs w"):
            await evaluator.check(rollout_pb2.Evaluation(dataset=other, output="y", metrics=["f1"]), [good])
        with pytest.raises(NotFoundError):
            await evaluator.check(rollout_pb2.Evaluation(dataset="0" * 64, output="y"), [good])
