"""Which versions gateways are asked for."""

from __future__ import annotations

from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.state import State
from coordinator.xds.loads import Counted, GatewayLoads, rolled_out

A, B, C = ("a", "1.0.0"), ("a", "2.0.0"), ("b", "1.0.0")


def state_of(**rollouts: int) -> State:
    """Deployments a and b, and rollouts of them in these states."""
    a = routing_pb2.Deployment(name="a", targets=[routing_pb2.Target(version=version) for _, version in (A, B)])
    b = routing_pb2.Deployment(name="b", targets=[routing_pb2.Target(version=C[1])])
    return State(
        deployments={"a": a, "b": b},
        rollouts={name: rollout_pb2.Rollout(state=value) for name, value in rollouts.items()},  # type: ignore[arg-type]
    )


def test_only_targets_of_deployments_with_a_rollout_that_is_not_over_are_asked_for() -> None:
    assert rolled_out(state_of()) == frozenset()
    for name, value in rollout_pb2.RolloutState.items():
        over = name in ("ROLLOUT_STATE_SUCCEEDED", "ROLLOUT_STATE_ROLLED_BACK")
        assert rolled_out(state_of(a=value)) == (frozenset() if over else {A, B})
    assert rolled_out(state_of(b=rollout_pb2.ROLLOUT_STATE_HELD, gone=rollout_pb2.ROLLOUT_STATE_HELD)) == {C}


def test_counts_are_kept_of_what_is_asked_for_and_of_nothing_else() -> None:
    loads = GatewayLoads()
    loads.ask(frozenset({B, A}))
    assert list(loads.gateway_counts().items()) == [(A, Counted()), (B, Counted())]
    loads.ask(frozenset({C}))
    assert loads.gateway_counts() == {C: Counted()}
