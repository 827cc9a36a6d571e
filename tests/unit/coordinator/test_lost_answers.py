"""What a leader and a session do when etcd's answers are lost, late or refusals: the races that kills rarely hit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from aimesh.membership.v1 import membership_pb2
from coordinator import keys
from coordinator.election import Election
from coordinator.etcd import Created, Delete, KeyValue, LeaseGoneError, Put, RefusedError, Unchanged
from coordinator.mirror import Mirror
from coordinator.paging import page
from coordinator.session import Session
from coordinator.sessions import Sessions
from coordinator.settings import CoordinatorSettings
from coordinator.state import State
from meshkit.errors import InvalidInputError, SupersededError, UnavailableError
from tests.processes import eventually

MOST_OPERATIONS = 128
"""etcd's --max-txn-ops."""


class Memory:
    """etcd's transactions in memory, with a hook before each and a switch that loses the answer to the next."""

    def __init__(self) -> None:
        self.kept: dict[str, KeyValue] = {}
        self.revision = 1
        self.lose_next = False
        self.gate = asyncio.Event()
        self.gate.set()

    async def get(self, *names: str) -> tuple[int, Sequence[KeyValue]]:
        return self.revision, [self.kept.get(name, KeyValue(name, None, 0)) for name in names]

    async def txn(self, guards: Iterable[Unchanged | Created], changes: Iterable[Put | Delete]) -> int | None:
        await self.gate.wait()
        guards, changes = list(guards), list(changes)
        if max(len(guards), len(changes)) > MOST_OPERATIONS:
            raise RefusedError("etcdserver: too many operations in txn request")
        if not all(self._holds(guard) for guard in guards):
            return None
        self.revision += 1
        for change in changes:
            if isinstance(change, Delete):
                self.kept.pop(change.key, None)
            if isinstance(change, Put):
                born = self.kept[change.key].create_revision if change.key in self.kept else self.revision
                self.kept[change.key] = KeyValue(change.key, change.value, self.revision, born, change.lease)
        if self.lose_next:  # it took effect, the answer was lost, and the client sent it again
            self.lose_next = False
            return None
        return self.revision

    def _holds(self, guard: Unchanged | Created) -> bool:
        held = self.kept.get(guard.key, KeyValue(guard.key, None, 0))
        if isinstance(guard, Unchanged):
            return held.mod_revision == guard.mod_revision
        return held.create_revision == guard.create_revision


def settings() -> CoordinatorSettings:
    return CoordinatorSettings(data_dir=Path("/nowhere"), id="c1")


def election(memory: Any) -> Election:
    made = Election(memory, Mirror(memory), settings())
    made._lease = 7
    return made


async def test_a_term_whose_answer_was_lost_is_ours_all_the_same() -> None:
    memory = Memory()
    memory.lose_next = True
    term = await election(memory)._take_lead()
    assert term == memory.kept[keys.LEADER].create_revision


async def test_a_key_of_an_earlier_life_is_waited_out() -> None:
    memory = Memory()
    memory.kept[keys.LEADER] = KeyValue(keys.LEADER, b"c1", 3, 3, lease=6)
    assert await election(memory)._take_lead() == 0


async def test_a_lease_that_lapsed_before_the_campaign_is_registered_anew() -> None:
    class Lapsed(Memory):
        async def txn(self, guards: Any, changes: Any) -> int | None:
            raise LeaseGoneError("requested lease not found")

    with pytest.raises(Exception, match="lease not found") as lapsed:
        await election(Lapsed())._take_lead()
    assert type(lapsed.value).__name__ == "_LapsedError"


async def test_a_leader_that_could_not_renew_leads_on_when_its_lease_lives() -> None:
    """etcd's next leader lets leases begin anew: the key is still there, and nobody else could take it."""
    back = asyncio.Event()

    class Silent(Memory):
        async def keep_alive(self, leases: Any, timeout_s: float) -> set[int]:
            if not back.is_set():
                raise UnavailableError("etcd does not answer")
            return set()

    memory = Silent()
    leader = Election(memory, Mirror(memory), replace(settings(), leader_ttl_s=2))  # type: ignore[arg-type]
    leader._lease = 7
    term = leader.term = await leader._take_lead()
    leader._mirror.state = State(leader="c1")
    renewing = asyncio.create_task(leader._renew())
    await eventually(lambda: leader.term == 0, what="not sure any more")
    back.set()
    await eventually(lambda: leader.term == term, what="sure again, of the same term")
    renewing.cancel()
    await asyncio.wait([renewing])


def test_who_does_not_lead_has_no_fence() -> None:
    """A guard on a leader that does not exist would hold just between two leaders."""
    with pytest.raises(SupersededError):
        election(Memory()).fence()


async def test_a_late_report_is_not_overwritten_by_an_older_one() -> None:
    memory = Memory()
    sessions = Sessions(memory, Mirror(memory), settings())  # type: ignore[arg-type]
    node = membership_pb2.Node(id="n1", state=membership_pb2.NODE_STATE_READY)
    node.report.triton.state = membership_pb2.TRITON_STATE_READY
    session = Session(node, 7, 0, 0.0, node.report)
    fresh = membership_pb2.ModelReport()
    fresh.CopyFrom(node.report)
    fresh.models.add(name="m", version="1.0.0", state=membership_pb2.MODEL_STATE_READY)
    memory.gate.clear()
    reporting = asyncio.create_task(sessions.write(session, fresh))
    suspecting = asyncio.create_task(sessions.write(session, probe=membership_pb2.PROBE_SILENT))
    await asyncio.sleep(0)
    memory.gate.set()
    await asyncio.gather(reporting, suspecting)
    kept = keys.parse(memory.kept[keys.node("n1")].value or b"", membership_pb2.Node())
    assert kept.state == membership_pb2.NODE_STATE_SUSPECT
    assert [model.version for model in kept.report.models] == ["1.0.0"]


def test_pages_hold_while_the_list_changes() -> None:
    names = ["a", "a-b", "a.c", "b"]
    first, token = page(sorted(names), 2, "", key=str)
    second, end = page(sorted([*names, "0"]), 2, token, key=str)
    assert (first, second, end) == (["a", "a-b"], ["a.c", "b"], "")
    for bad in ("!", "%%%", "a"):
        with pytest.raises(InvalidInputError, match="page_token"):
            page(names, 2, bad, key=str)
