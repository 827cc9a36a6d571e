"""A job that was planned for few nodes, and by which of its plans it goes on when there are more."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.training.v1 import training_pb2
from coordinator.training import record
from coordinator.training.needs import fitting, least_workers
from coordinator.training.schedule import Offer
from coordinator.training.widening import widened, widest
from tests.unit.coordinator.training.world import SECOND, World, growing, node, plan_of, spec

SINGLE, DDP = training_pb2.STRATEGY_SINGLE, training_pb2.STRATEGY_DDP
TENSOR, PIPELINE = training_pb2.STRATEGY_TENSOR, training_pb2.STRATEGY_PIPELINE


def world(*names: str, most: int = 3) -> World:
    """One job, which is planned for a single node."""
    made = World({name: node(name) for name in names})
    asked = spec(least=1, most=most)
    made.plans[made.submit(asked)] = growing(asked, (TENSOR, 2), (DDP, 3))
    return made


def offering(count: int) -> object:
    return lambda job: Offer(
        tuple(training_pb2.Worker(rank=rank) for rank in range(min(count, job.plan.workers or count)))
    )


def until_checkpoint(made: World) -> None:
    while not made.job().checkpoint.step:
        made.go_on()


def test_a_job_that_was_planned_for_one_node_goes_on_with_those_that_join() -> None:
    made = world("a")
    until_checkpoint(made)
    assert (made.job().plan.strategy, len(made.job().attempt.workers)) == (SINGLE, 1)
    made.nodes = {**made.nodes, "b": node("b")}
    made.lead()
    assert made.job().phase == record.TRAINING, "not before the next checkpoint"
    made.go_on(40)
    job = made.job()
    assert (job.state, job.attempt.number, len(job.attempt.workers)) == (record.SUCCEEDED, 2, 2)
    assert (job.lost_steps, job.failures, job.preemptions) == (0, 0, 0)
    assert (job.plan.strategy, job.plan.situation, job.plan.from_workers) == (TENSOR, "of 2 nodes", 0)
    assert [wider.from_workers for wider in job.plan.wider] == [3], "it could grow again"
    assert any("2 workers in place of 1, tensor in place of single" in each.reason for each in made.history)


def test_nodes_that_come_while_it_is_planned_are_used_at_once() -> None:
    made = world("a")
    made.go_on(2)
    assert made.job().phase == record.PLANNING
    made.nodes = {name: node(name) for name in ("a", "b", "c")}
    made.go_on(2)
    job = made.job()
    assert (job.attempt.number, len(job.attempt.workers), job.plan.strategy, len(job.plan.wider)) == (1, 3, DDP, 0)


def test_of_several_jobs_one_stops_for_a_node_that_joins() -> None:
    made = World({"a": node("a", memory=3)})
    first, second = made.submit(spec("one", least=1, most=2)), made.submit(spec("two", least=1, most=2))
    for job_id, names in ((first, "a"), (second, "ab")):
        made.nodes = {name: node(name, memory=3) for name in names}
        while made.job(job_id).phase != record.TRAINING:
            made.go_on()
    assert [made.job(each).attempt.workers[0].node for each in (first, second)] == ["a", "b"]
    made.now_ns += 10 * SECOND
    made.agents("b")  # both write their checkpoints at the same moments
    made.nodes = {name: node(name, memory=3) for name in "abc"}
    made.go_on(40)
    found = [made.job(each) for each in (first, second)]
    assert [job.state for job in found] == [record.SUCCEEDED] * 2
    assert sorted(job.attempt.number for job in found) == [1, 2], [job.reason for job in made.history]


def test_a_loss_brings_a_job_back_by_the_widest_plan_that_there_are_nodes_for() -> None:
    made = world("a")
    until_checkpoint(made)
    made.nodes = {**made.nodes, "b": node("b"), "c": node("c")}
    made.fail("a")
    made.lead()
    job = made.job()
    assert (job.failures, len(job.attempt.workers), job.plan.strategy) == (1, 3, DDP)


def test_a_job_that_has_grown_shrinks_with_its_strategy() -> None:
    made = world("a", "b")
    until_checkpoint(made)
    assert len(made.job().attempt.workers) == 2
    made.fail("b")
    made.nodes = {"a": made.nodes["a"]}
    made.go_on(40)
    job = made.job()
    assert (job.state, len(job.attempt.workers), job.plan.strategy) == (record.SUCCEEDED, 1, TENSOR)


def test_a_strategy_is_given_as_many_workers_as_it_can_use() -> None:
    made = World({name: node(name) for name in "abcd"})
    asked = spec(least=2, most=4, strategy=TENSOR)
    plan = training_pb2.JobPlan(strategy=TENSOR, steps=asked.steps, workers=4, counts=[2, 4])
    made.plans[made.submit(asked)] = plan
    until_checkpoint(made)
    assert len(made.job().attempt.workers) == 4
    made.fail("d")
    made.nodes = {name: each for name, each in made.nodes.items() if name != "d"}
    made.go_on()
    assert len(made.job().attempt.workers) == 2, "three cannot share its layers"
    made.go_on(40)
    assert (made.job().state, made.job().attempt.number) == (record.SUCCEEDED, 2)
    asked.resources.min_workers = 3
    assert least_workers(training_pb2.Job(spec=asked, plan=plan)) == 4


@settings(max_examples=25)
@given(st.lists(st.integers(2, 8), max_size=4, unique=True).map(sorted), st.integers(0, 9))
def test_the_widest_plan_is_the_last_that_has_its_nodes(froms: list[int], nodes: int) -> None:
    job = training_pb2.Job(spec=spec(least=1, most=8))
    job.plan.CopyFrom(growing(job.spec, *((DDP if at % 2 else PIPELINE, least) for at, least in enumerate(froms))))
    before = training_pb2.Job()
    before.CopyFrom(job)
    made, found = widest(job, offering(nodes))  # type: ignore[arg-type]
    can = [least for least in froms if least <= nodes]
    assert job == before
    assert len(found.workers) == min(nodes, 8 if can else 1)
    assert [each.from_workers for each in made.plan.wider] == (froms[froms.index(can[-1]) + 1 :] if can else froms)
    assert not made.plan.from_workers
    assert (made is job) == (not can)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 9)), st.integers(0, 9))
def test_so_many_are_used_as_can_be(counts: list[int], nodes: int) -> None:
    used = fitting(training_pb2.Job(plan=training_pb2.JobPlan(counts=counts)), nodes)
    assert used <= nodes
    assert used == nodes if not counts else used in {0, *counts}


def test_what_plans_have_in_common_stays() -> None:
    plan = training_pb2.JobPlan(
        strategy=SINGLE, reason="alone", workers=1, steps=9, samples=5, explored=True, memory_bytes=7, counts=[1]
    )
    plan.basis.nodes, plan.basis.latency_s = 1, 0.5
    plan.options.add(strategy=SINGLE, value=1)
    wider = plan.wider.add(strategy=DDP, reason="two", workers=4, from_workers=2, memory_bytes=8)
    wider.basis.nodes = 2
    wider.options.add(strategy=DDP, value=1.3)
    found = widened(training_pb2.Job(plan=plan), 0).plan
    assert found.from_workers == 0
    plan.from_workers, plan.wider[0].from_workers = 2, 4
    assert widened(training_pb2.Job(plan=plan), 0).plan.from_workers == 2, "fewer cannot train it"
    assert (found.strategy, found.reason, found.workers, found.memory_bytes) == (DDP, "two", 4, 8)
    assert (found.steps, found.samples, found.basis.nodes, found.basis.latency_s) == (9, 5, 2, 0.5)
    assert [one.strategy for one in found.options] == [DDP]
    assert (found.explored, list(found.counts), list(found.wider)) == (False, [], [])


def test_a_plan_that_needs_more_nodes_than_are_free_waits_for_them_at_the_start_and_after_a_loss() -> None:
    made = World({"a": node("a")})
    asked = spec(least=1, most=3)
    plan = plan_of(asked)
    plan.workers, plan.from_workers = 3, 2
    made.plans[made.submit(asked)] = plan
    made.go_on(6)
    assert made.job().phase == record.QUEUED
    assert "waits for 2 workers, there is room for 1" in made.job().reason
    made.nodes = {**made.nodes, "b": node("b")}
    made.go_on(6)
    assert len(made.job().attempt.workers) == 2
    made.die("b")
    made.go_on(20)
    assert made.job().phase == record.QUEUED, "one alone has not the memory"
    made.come_back("b")
    made.go_on(40)
    assert made.job().state == record.SUCCEEDED
