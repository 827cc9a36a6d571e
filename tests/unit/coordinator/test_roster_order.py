from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator.roster import Roster
from coordinator.state import State

KEYS = [(f"m{number}", "1.0.0") for number in range(4)]
VERSIONS = {
    key: registry_pb2.ModelVersion(
        name=key[0], version=key[1], requirements=registry_pb2.Requirements(memory_bytes=number + 1)
    )
    for number, key in enumerate(KEYS)
}
BLOBS = st.frozensets(st.sampled_from("abc"))


@given(
    nodes=st.lists(st.tuples(st.integers(0, 5), BLOBS), min_size=1, max_size=8),
    moves=st.lists(st.tuples(st.integers(0, 7), st.sampled_from(KEYS)), max_size=12),
    wanted=BLOBS,
)
def test_the_kept_order_is_that_of_all_nodes_sorted_by_preference(
    nodes: list[tuple[int, frozenset[str]]], moves: list[tuple[int, tuple[str, str]]], wanted: frozenset[str]
) -> None:
    roster = Roster(State(nodes={f"n{i}": _node(i, *each) for i, each in enumerate(nodes)}, versions=VERSIONS))
    for number, key in moves:
        slot = roster.slots[f"n{number % len(nodes)}"]
        if key in slot.versions:
            roster.give_back(slot, key)
        else:
            roster.take(slot, key)
    expected = sorted(roster.slots.values(), key=lambda slot: slot.preference(wanted))
    assert [slot.id for slot in roster.preferred(wanted)] == [slot.id for slot in expected]


def _node(number: int, memory: int, blobs: frozenset[str]) -> membership_pb2.Node:
    return membership_pb2.Node(
        id=f"n{number}",
        state=membership_pb2.NODE_STATE_READY,
        capacity=membership_pb2.Capacity(memory_bytes=memory),
        report=membership_pb2.ModelReport(blobs=sorted(blobs)),
    )
