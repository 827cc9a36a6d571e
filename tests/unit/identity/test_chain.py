"""The audit chain: whatever is done to it, it is noticed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.identity.v1 import identity_pb2
from coordinator.identity.chain import FIELDS, Head, link, verify
from meshkit.errors import DataLossError

Event = identity_pb2.AuditEvent

texts = st.text(max_size=20)
events = st.lists(
    st.builds(Event, id=texts, actor=texts, target=texts, before=texts, after=texts), min_size=2, max_size=8
)


def chained(plain: list[Event]) -> list[Event]:
    head, linked = Head(), []
    for event in plain:
        linked.append(link(event, head))
        head = Head(linked[-1].sequence, linked[-1].hash)
    return linked


@given(events)
def test_a_chain_as_it_was_made_is_whole(plain: list[Event]) -> None:
    linked = chained(plain)
    assert verify(linked) == Head(len(plain), linked[-1].hash)
    assert verify(linked[1:], verify(linked[:1])) == verify(linked)


@given(events, st.data())
def test_a_change_of_any_field_is_found(plain: list[Event], data: st.DataObject) -> None:
    linked = chained(plain)
    victim = data.draw(st.sampled_from(linked))
    field = data.draw(st.sampled_from([*FIELDS, "hash"]))
    setattr(victim, field, getattr(victim, field) + "x")
    with pytest.raises(DataLossError, match=f"event {victim.sequence} "):
        verify(linked)


@given(events, st.data())
def test_a_removed_or_inserted_or_moved_event_is_found(plain: list[Event], data: st.DataObject) -> None:
    linked = chained(plain)
    at = data.draw(st.integers(0, len(linked) - 2))
    removed = linked[:at] + linked[at + 1 :]
    inserted = [*linked[: at + 1], Event(id="forged", sequence=at + 2, hash=linked[at].hash), *linked[at + 1 :]]
    moved = [*linked[:at], linked[at + 1], linked[at], *linked[at + 2 :]]
    for changed in (removed, inserted, moved):
        with pytest.raises(DataLossError):
            verify(changed)


def test_the_time_of_an_event_is_covered() -> None:
    (event,) = chained([Event(id="a")])
    event.at.FromSeconds(5)
    with pytest.raises(DataLossError):
        verify([event])
