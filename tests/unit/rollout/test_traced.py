"""Which models nodes are told to trace: those with a rollout that is not over."""

from __future__ import annotations

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator.session import Session, traced_names
from coordinator.state import State


def state_with(**rollouts: rollout_pb2.RolloutState.ValueType) -> State:
    names = ("a", "b")
    return State(
        versions={(name, "1.0.0"): registry_pb2.ModelVersion(name=name, version="1.0.0") for name in names},
        assignments={"n": frozenset((name, "1.0.0") for name in names)},
        assignment_revisions={"n": 7},
        rollouts={name: rollout_pb2.Rollout(state=state) for name, state in rollouts.items()},
    )


def told(session: Session, state: State) -> dict[str, int] | None:
    """What the node is told of tracing; None when it is told nothing."""
    session.assign(state)
    if session.outgoing.empty():
        return None
    message = session.outgoing.get_nowait()
    assert message is not None
    return dict(message.assignments.traced)


def test_a_rollout_has_its_model_traced_until_it_is_over() -> None:
    session = Session(membership_pb2.Node(id="n"), 1, 1, 0.0, membership_pb2.ModelReport())
    assert told(session, state_with()) == {}
    assert told(session, state_with(a=rollout_pb2.ROLLOUT_STATE_RUNNING, other=rollout_pb2.ROLLOUT_STATE_HELD)) == {
        "a": 1
    }
    assert told(session, state_with(a=rollout_pb2.ROLLOUT_STATE_ROLLING_BACK)) is None, "it is told changes only"
    both = {"a": rollout_pb2.ROLLOUT_STATE_PAUSED, "b": rollout_pb2.ROLLOUT_STATE_RUNNING}
    assert told(session, state_with(**both)) == {"a": 1, "b": 1}
    over = {"a": rollout_pb2.ROLLOUT_STATE_ROLLED_BACK, "b": rollout_pb2.ROLLOUT_STATE_SUCCEEDED}
    assert told(session, state_with(**over)) == {}
    assert traced_names(state_with(**over)) == frozenset()
