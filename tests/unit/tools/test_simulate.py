from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.hello import check_hello
from meshkit.errors import InvalidInputError, UnavailableError
from tools.simulate.changes import Board, counts, has, lacks
from tools.simulate.gauges import EtcdCounters, Usage, parse_counters
from tools.simulate.plan import HUB, MODEL_BYTES, Plan, growth, hello, watchers
from tools.simulate.report import Machine, Reading, Report, part
from tools.simulate.statistics import Spread, quantile, spread

PLAN = Plan(nodes=1000, models=100, clients=1000, coordinators=10)
METRICS = """# HELP etcd_mvcc_put_total Total number of puts seen by this member.
etcd_debugging_mvcc_current_revision 42
etcd_mvcc_put_total 50
etcd_mvcc_delete_total 7
etcd_mvcc_range_total 900
etcd_server_proposals_committed_total 1.2e+02
"""


@pytest.mark.parametrize(
    "wrong", [{"nodes": 1}, {"models": 0}, {"clients": -1}, {"coordinators": 51}, {"etcd": 2}, {"churn": 101.0}]
)
def test_numbers_that_make_no_sense_are_named(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(InvalidInputError, match=f"--{name} {next(iter(wrong.values())):g}"):
        Plan(**{"nodes": 10, "models": 5, "clients": 10, "coordinators": 2, **wrong})


def test_growth_runs_a_hundredth_a_tenth_and_all_and_never_too_little() -> None:
    sizes = [(plan.nodes, plan.models, plan.clients, plan.coordinators) for plan in growth(PLAN)]
    assert sizes == [(10, 1, 10, 10), (100, 10, 100, 10), (1000, 100, 1000, 10)]
    assert growth(Plan(nodes=2, models=1, clients=1, coordinators=1))[0].nodes == 2


def test_every_node_is_a_valid_one_with_an_address_of_its_own_and_the_hub_has_room_for_all() -> None:
    hellos = [hello(PLAN, index) for index in range(PLAN.nodes)]
    for each in hellos:
        check_hello(each)
    assert len({each.node_id for each in hellos}) == len({each.address for each in hellos}) == PLAN.nodes
    hub = hellos[HUB].capacity
    assert min(hub.memory_bytes, hub.gpus[0].memory_bytes) > PLAN.models * MODEL_BYTES
    assert all(each.capacity.memory_bytes < hub.memory_bytes for each in hellos[1:])


def test_every_client_watches_one_model() -> None:
    found = watchers(Plan(nodes=4, models=3, clients=7, coordinators=1))
    assert [len(clients) for clients in found.values()] == [3, 2, 2]
    assert sorted(client for clients in found.values() for client in clients) == list(range(7))


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_a_quantile_is_a_value_that_its_share_does_not_exceed(values: list[float]) -> None:
    ordered = sorted(values)
    for share in (0.5, 0.99, 1.0):
        found = quantile(ordered, share)
        assert found in ordered
        assert sum(value <= found for value in ordered) >= share * len(ordered)
    assert spread(values).p50 <= spread(values).p99 <= spread(values).most == max(values)


def test_no_values_have_no_spread() -> None:
    assert spread([]) == Spread()
    with pytest.raises(ValueError, match="no values"):
        quantile([], 0.5)


async def test_a_change_has_arrived_when_the_last_client_that_must_see_it_has_acknowledged_it() -> None:
    board = Board({"a": [0, 1], "b": [2]})
    for client, model in ((0, "a"), (1, "a"), (2, "b")):
        board.acknowledged(client, model, frozenset({"n1"}), 0.0)
    assert board.rests("a", 1)
    change = board.begin("killed", "n1", ["a"], lacks("n1"), 1.0)
    assert change is not None
    assert change.waiting == {0, 1}  # b's client is not concerned
    board.acknowledged(0, "a", frozenset(), 1.5)
    board.acknowledged(1, "a", frozenset({"n1", "n2"}), 1.6)  # something else changed
    assert not change.arrived.is_set()
    assert not board.rests("a", 1)
    board.acknowledged(1, "a", frozenset({"n2"}), 3.0)
    assert change.arrived.is_set()
    assert [(each.kind, each.took_s, each.clients) for each in board.arrivals] == [("killed", 2.0, 2)]
    assert board.pending() == []


async def test_what_everyone_sees_already_is_no_change_and_what_is_taken_back_is_given_up() -> None:
    board = Board({"a": [0]})
    board.acknowledged(0, "a", frozenset({"n1"}), 0.0)
    assert board.begin("ready", "n1", ["a"], has("n1"), 1.0) is None
    assert board.begin("scaled up", "x", ["nobody calls it"], counts(2), 1.0) is None
    assert board.begin("ready", "n2", ["a"], has("n2"), 1.0) is not None
    board.supersede("ready", "n1")
    assert board.superseded == 0
    board.supersede("ready", "n2", "a")
    assert (board.superseded, board.pending(), board.arrivals) == (1, [], [])


def test_etcds_counters_are_read_from_its_page() -> None:
    found = parse_counters(METRICS)
    assert found == EtcdCounters(revision=42, puts=50, deletes=7, proposals=120)
    assert found.writes == 57
    with pytest.raises(UnavailableError, match="etcd_mvcc_put_total"):
        parse_counters("etcd_mvcc_delete_total 1\n")


def test_heartbeats_that_write_and_lost_changes_are_problems_and_bars_say_what_was_measured() -> None:
    good, bad = _report(idle_revisions=0), _report(idle_revisions=3, lost=("scaled up m: 1 of 10 clients still wait",))
    assert good.problems == []
    assert [holds for _, _, holds in good.bars] == [True, True]
    assert any("3 transactions wrote to etcd" in problem for problem in bad.problems)
    assert any("1 of 10 clients" in problem for problem in bad.problems)
    assert (good.parts["idle"].cpu_cores, good.parts["idle"].other_cores) == ({"coordinator-1": 0.5}, 1.0)


def _report(idle_revisions: int, lost: tuple[str, ...] = ()) -> Report:
    before = Reading(
        10.0, EtcdCounters(5, 5, 0, 9), Usage({"machine": 4.0, "coordinator-1": 1.0}, {"coordinator-1": 100})
    )
    after = Reading(
        12.0,
        EtcdCounters(5 + idle_revisions, 5 + idle_revisions, 0, 9),
        Usage({"machine": 7.0, "coordinator-1": 2.0}, {"coordinator-1": 200}),
    )
    return Report(
        plan=PLAN,
        machine=Machine(2, 1.0, 2.0),
        parts={"idle": part(before, after)},
        joined_s=1.0,
        join=Spread(),
        clients_s=1.0,
        deploy_s=1.0,
        propagation={"all": spread([0.1, 0.2]), "everyone": Spread()},
        api=Spread(),
        idle_heartbeats=20,
        changes=2,
        skipped=0,
        superseded=0,
        late_calls=0,
        joins_failed={},
        sessions_lost={},
        streams_lost={},
        resident_bytes={"coordinator-1": 200, "etcd-1": 10**12},
        lost=lost,
    )
