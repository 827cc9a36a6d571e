"""A job's course: what the leader makes of losses, orders and nodes that come and go."""

from __future__ import annotations

import pytest

from aimesh.membership.v1 import membership_pb2
from aimesh.training.v1 import training_pb2
from coordinator.order import Order
from coordinator.training import record
from coordinator.training.attempts import overtaken, reached
from coordinator.training.orders import Orders
from coordinator.training.schedule import PATIENCE_S, waits_long
from coordinator.training.seen import Seen
from coordinator.training.steering import cancelled, paused, resumed
from tests.unit.coordinator.training.world import GIB, SECOND, STEPS, World, node, spec

ME = Order("ann", "lunch", 0)


def world(*names: str, **changes: int) -> World:
    return World({name: node(name, **changes) for name in names})  # type: ignore[arg-type]


def until(made: World, phase: int, job_id: str = "", times: int = 40) -> training_pb2.Job:
    for _ in range(times):
        if made.job(job_id).phase == phase:
            return made.job(job_id)
        made.go_on()
    raise AssertionError(f"it never came to {phase}: {made.job(job_id)}")


def at_step(made: World, step: int) -> training_pb2.Job:
    """Until all workers have made so many steps."""
    for _ in range(60):
        if made.steps and all(each >= step for key, each in made.steps.items() if key[1] == made.job().attempt.number):
            return made.job()
        made.go_on()
    raise AssertionError(made.job())


def join(made: World, *names: str) -> None:
    """New nodes, for which the job stops and begins anew."""
    made.nodes |= {name: node(name) for name in names}
    until(made, record.STOPPING)
    until(made, record.PREPARING)


def test_a_job_is_planned_prepared_trained_and_recorded() -> None:
    made = world("a", "b")
    job_id = made.submit(spec(least=2))
    made.go_on(40)
    job = made.job()
    phases = list(dict.fromkeys(each.phase for each in made.history if each.id == job_id))
    assert phases == [
        record.QUEUED,
        record.PLANNING,
        record.PREPARING,
        record.TRAINING,
        record.FINISHING,
        record.NONE,
    ]
    assert (job.state, job.model, job.step, job.error) == (record.SUCCEEDED, "job:1.0.0", STEPS, "")
    assert dict(job.results) == {"samples_per_s": 80.0}
    assert (job.attempt.number, job.failures, job.lost_steps) == (1, 0, 0)
    assert Orders().of(made.seen()) == {}


def test_all_workers_or_none() -> None:
    made = world("a", "b")
    made.submit(spec(least=3))
    made.go_on(5)
    assert made.job().state == record.PENDING
    assert "waits for 3 workers, there is room for 2" in made.job().reason
    made.nodes = {**made.nodes, "c": node("c")}
    assert len(until(made, record.TRAINING).attempt.workers) == 3


def test_none_trains_before_all_have_what_they_need() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    until(made, record.PREPARING)
    for _ in range(5):
        made.lead()
        made.agents("a")
    assert made.job().phase == record.PREPARING
    assert not any(task.go for tasks in Orders().of(made.seen()).values() for task in tasks)
    until(made, record.TRAINING)
    job = made.job()
    assert (job.attempt.go, job.attempt.rendezvous) == (True, "10.0.0.1:7000")


def test_a_killed_worker_costs_the_steps_since_the_last_checkpoint() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    at_step(made, 25)
    made.fail("b")
    made.lead()  # seen once, written at once
    job = made.job()
    assert (job.phase, job.attempt.number, job.attempt.resume.step, job.failures) == (record.PREPARING, 2, 20, 1)
    assert job.lost_steps == 5
    assert "rank 1 on b: killed by signal 9" in job.reason
    made.go_on(40)
    assert made.job().state == record.SUCCEEDED


def test_what_is_made_again_is_counted_by_whoever_knows_most() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    at_step(made, 25)
    made.fail("b")
    for status in made.statuses["b"].values():
        status.step = 29  # the last heartbeat had said 25
    made.lead()
    job = made.job()
    assert (job.attempt.from_step, job.step, job.lost_steps) == (20, 29, 9)
    points = [training_pb2.MetricPoint(step=step, attempt=1) for step in range(1, 32)]
    assert overtaken(job, points[:29]) is None
    found = overtaken(job, points)
    assert found is not None
    assert (found.step, found.lost_steps, overtaken(found, points)) == (31, 11, None)
    assert found.reason.endswith("steps made again: 11")
    later = [training_pb2.MetricPoint(step=50, attempt=2)]
    assert overtaken(job, later) is None, "the next attempt's steps are not lost"


def test_a_lost_result_costs_what_came_after_the_last_checkpoint() -> None:
    made = world("a")
    made.submit(spec())
    until(made, record.FINISHING)
    assert made.job().step == STEPS
    before = made.job()
    seen = Seen(now_ns=made.now_ns, step=before.attempt.from_step)  # of a leader that has just begun
    assert reached(before, seen) == STEPS


def test_a_result_that_is_never_packed_is_made_anew() -> None:
    made = world("a")
    made.submit(spec())
    until(made, record.FINISHING)
    made.now_ns += 4000 * SECOND
    made.lead()
    job = made.job()
    assert (job.phase, job.failures) == (record.PREPARING, 1)
    assert "packing the result on a took longer than 3600 s" in job.reason
    made.go_on(40)
    assert made.job().state == record.SUCCEEDED


def test_a_dead_nodes_work_goes_on_with_what_is_left() -> None:
    made = world("a", "b", "c")
    made.submit(spec(least=2, most=3))
    at_step(made, 25)
    made.die("c")
    made.lead()
    assert made.job().phase == record.TRAINING, "an agent that is started anew is given a moment"
    made.now_ns += 4 * SECOND
    made.lead()
    job = made.job()
    assert [worker.node for worker in job.attempt.workers] == ["a", "b"]
    assert job.attempt.resume.step == 20, "copies of the dead node's part lie on another"
    assert "rank 2 on c: the node is silent" in job.reason
    made.go_on(40)
    assert made.job().state == record.SUCCEEDED


def test_an_agent_that_comes_back_without_its_worker_is_noticed() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    at_step(made, 15)
    made.statuses["b"].clear()
    made.lead()
    assert made.job().attempt.number == 1
    made.now_ns += 6 * SECOND
    made.lead()
    assert made.job().attempt.number == 2
    assert "its agent knows it no more" in made.job().reason


def test_an_error_of_the_code_ends_the_job_with_the_first_by_time() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    at_step(made, 15)
    made.fail("a", may_retry=True, message="connection to rank 1 broke", at=made.now_ns)
    made.fail("b", may_retry=False, message="label 11 is out of range", at=made.now_ns + SECOND)
    made.lead()
    job = made.job()
    assert (job.state, job.error) == (record.FAILED, "rank 1 on b: label 11 is out of range")
    assert job.failures == 0


def test_an_error_of_the_code_that_is_told_late_still_ends_the_job() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    at_step(made, 15)
    made.fail("a", message="connection to rank 1 broke")
    made.lead()
    assert made.job().attempt.number == 2
    made.fail("b", may_retry=False, message="label 11 is out of range")
    made.lead()
    assert made.job().error == "rank 1 of attempt 1: label 11 is out of range"


def test_a_job_is_brought_back_as_often_as_it_may() -> None:
    made = world("a")
    made.submit(spec(restarts=training_pb2.RestartBudget(failures=2)))
    for _ in range(60):
        if any(status.state == training_pb2.TASK_STATE_RUNNING for status in made.statuses.get("a", {}).values()):
            made.fail("a")
        made.go_on()
    job = made.job()
    assert (job.state, job.failures, job.attempt.number) == (record.FAILED, 2, 3)
    assert "it was brought back 2 times before" in job.error
    assert made.lacked == {job.id}


def test_pausing_loses_nothing_and_resuming_goes_on() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    at_step(made, 25)
    made.write(paused(made.job(), ME))
    made.go_on(5)
    job = made.job()
    assert (job.state, job.phase, job.reason) == (record.PAUSED, record.NONE, "paused by ann: lunch")
    assert job.checkpoint.step == job.step >= 25
    assert Orders().of(made.seen()) == {}
    made.write(resumed(job, ME))
    made.go_on(40)
    job = made.job()
    assert (job.state, job.lost_steps, job.failures, job.preemptions) == (record.SUCCEEDED, 0, 0, 0)


@pytest.mark.parametrize("phase", [record.QUEUED, record.PLANNING, record.PREPARING, record.TRAINING, record.FINISHING])
def test_cancelling_ends_it_wherever_it_is(phase: int) -> None:
    made = world("a")
    made.submit(spec())
    until(made, phase)
    made.write(cancelled(made.job(), ME))
    made.go_on(6)
    job = made.job()
    assert (job.state, job.error) == (record.FAILED, "cancelled by ann: lunch")
    assert (job.model, Orders().of(made.seen())) == ("", {})


def test_a_joining_node_is_used_at_the_next_checkpoint() -> None:
    made = world("a", "b")
    made.submit(spec(least=1, most=3))
    while made.job().checkpoint.step < 10:
        made.go_on()
    made.nodes = {**made.nodes, "c": node("c")}
    made.lead()
    assert made.job().phase == record.TRAINING, "not at once"
    made.go_on(40)
    job = made.job()
    assert (job.state, job.attempt.number, len(job.attempt.workers)) == (record.SUCCEEDED, 2, 3)
    assert (job.lost_steps, job.failures, job.preemptions) == (0, 0, 0)


def test_a_node_that_joins_and_is_not_fit_costs_the_job_nothing() -> None:
    made = world("a", "b")
    job_id = made.submit(spec(least=1, most=3, restarts=training_pb2.RestartBudget(failures=0)))
    at_step(made, 5)
    join(made, "c")
    assert [worker.newcomer for worker in made.job().attempt.workers] == [False, False, True]
    made.agents()
    made.fail("c", may_retry=False, message="torch 1.0 is too old")
    made.go_on(2)
    job = made.job()
    assert job.reason == "goes on without rank 2 on c: torch 1.0 is too old"
    assert [worker.node for worker in job.attempt.workers] == ["a", "b"]
    made.go_on(40)
    job = made.job(job_id)
    assert (job.state, job.failures, job.lost_steps, job.attempt.number) == (record.SUCCEEDED, 0, 0, 3)


def test_two_nodes_that_join_and_are_not_fit_are_left_out_one_after_the_other() -> None:
    made = world("a", "b")
    job_id = made.submit(spec(least=1, most=4, restarts=training_pb2.RestartBudget(failures=0)))
    at_step(made, 5)
    join(made, "c", "d")
    made.agents()
    made.fail("c", may_retry=False, message="torch 1.0 is too old")
    made.lead()
    made.fail("d", may_retry=False, message="torch 1.0 is too old")  # of the attempt before: it has not heard yet
    made.lead()
    assert made.job().phase == record.PREPARING
    made.agents()
    made.agents()
    made.fail("d", may_retry=False, message="torch 1.0 is too old")
    made.go_on(40)
    job = made.job(job_id)
    assert (job.state, job.failures, sorted(job.unfit)) == (record.SUCCEEDED, 0, ["c", "d"])


def test_a_node_that_joins_and_is_lost_again_costs_the_job_nothing() -> None:
    made = world("a", "b")
    job_id = made.submit(spec(least=1, most=3, restarts=training_pb2.RestartBudget(failures=0)))
    at_step(made, 5)
    join(made, "c")
    made.agents()
    made.fail("c", may_retry=True, message="[Errno 28] No space left on device")
    made.go_on(40)
    job = made.job(job_id)
    assert (job.state, job.failures, job.attempt.number) == (record.SUCCEEDED, 0, 3)


def test_a_node_is_a_newcomer_until_it_was_ready_once() -> None:
    made = world("a", "b")
    made.submit(spec(least=1, most=3))
    at_step(made, 5)
    join(made, "c")
    made.agents()
    made.fail("c", may_retry=False, message="torch 1.0 is too old")
    made.go_on(1)
    made.write(paused(made.job(), ME))
    made.go_on(4)
    made.write(resumed(made.job(), ME))
    until(made, record.PREPARING)
    assert [worker.node for worker in made.job().attempt.workers if worker.newcomer] == ["c"]
    made.go_on(3)
    assert list(made.job().trained_on) == ["a", "b", "c"]


def test_a_job_without_another_node_than_an_unfit_one_says_so_until_a_person_resumes_it() -> None:
    made = world("a")
    made.submit(spec(least=1))
    at_step(made, 15)
    made.die("a")
    made.nodes["b"] = node("b")
    made.blobs["b"] = set(made.blobs["a"])
    until(made, record.PREPARING)
    made.agents()
    made.fail("b", may_retry=False, message="torch 1.0 is too old")
    made.go_on(2)
    assert made.job().state == record.PENDING
    assert "b: rank 0 on b: torch 1.0 is too old" in made.job().reason
    made.write(paused(made.job(), ME))
    made.write(resumed(made.job(), ME))
    made.go_on(40)
    assert made.job().state == record.SUCCEEDED


def test_an_error_on_a_node_that_trained_is_the_jobs() -> None:
    made = world("a", "b")
    made.submit(spec(least=1, most=3))
    at_step(made, 5)
    join(made, "c")
    made.agents()
    made.fail("c", may_retry=False, message="no module named mine")
    made.fail("a", may_retry=False, message="no module named mine")
    made.go_on(2)
    assert (made.job().state, len(made.job().unfit)) == (record.FAILED, 0)


def test_a_higher_priority_takes_the_nodes_of_a_lower_one() -> None:
    made = world("a", "b", memory=3)
    low = made.submit(spec("low", least=2))
    at_step(made, 15)
    high = made.submit(spec("high", priority=5))
    made.lead()
    assert made.job(low).phase == record.STOPPING
    assert made.job(low).reason == f"gives its nodes to {high}, whose priority 5 is higher"
    until(made, record.TRAINING, high)
    assert (made.job(low).state, made.job(low).preemptions) == (record.PENDING, 1)
    made.go_on(60)
    assert {job.state for job in made.jobs.values()} == {record.SUCCEEDED}
    assert made.job(low).lost_steps == 0


def test_a_reserved_job_gives_way_to_nobody() -> None:
    made = world("a", memory=3)
    low = made.submit(spec("low", reserved=True))
    at_step(made, 15)
    made.submit(spec("high", priority=5))
    made.go_on(2)
    assert made.job(low).phase == record.TRAINING


def test_a_drained_node_is_left_with_a_checkpoint() -> None:
    made = world("a", "b")
    made.submit(spec())
    at_step(made, 15)
    first = made.job().attempt.workers[0].node
    made.drains = {first: 1}
    made.go_on(40)
    job = made.job()
    assert (job.state, job.preemptions, job.lost_steps) == (record.SUCCEEDED, 1, 0)
    assert job.attempt.workers[0].node != first


def test_preemptions_have_a_budget_of_their_own() -> None:
    made = world("a", "b")
    made.submit(spec(restarts=training_pb2.RestartBudget(preemptions=0)))
    at_step(made, 15)
    made.drains = {made.job().attempt.workers[0].node: 1}
    made.lead()
    assert made.job().state == record.FAILED
    assert "had to give its nodes up 1 times" in made.job().error


def test_an_agent_that_goes_takes_its_worker_along_with_a_checkpoint() -> None:
    made = world("a", "b")
    made.submit(spec(least=1, most=2))
    at_step(made, 15)
    made._set("b", membership_pb2.NODE_STATE_DRAINING)
    made.lead()
    assert made.job().phase == record.STOPPING
    made.go_on(2)
    made.lead()
    made.nodes = {"a": made.nodes["a"]}
    made.go_on(40)
    assert (made.job().state, made.job().lost_steps) == (record.SUCCEEDED, 0)


def test_a_job_that_makes_no_step_is_given_up() -> None:
    made = world("a")
    made.submit(spec())
    made.job()
    at_step(made, 15)
    for _ in range(70):
        made.now_ns += 10 * SECOND
        made.lead()
    assert (made.job().state, made.job().failures) == (record.FAILED, 0)
    assert "no worker has made a step for 600 s, since step 15" in made.job().error


def test_a_job_ends_at_its_longest_duration_without_its_pauses() -> None:
    asked = spec()
    asked.max_duration.FromSeconds(100)
    asked.stall_timeout.FromSeconds(100_000)
    made = world("a")
    made.submit(asked)
    at_step(made, 15)
    made.write(paused(made.job(), ME))
    made.go_on(5)
    made.now_ns += 1000 * SECOND
    made.write(resumed(made.job(), ME))
    until(made, record.TRAINING)
    made.lead()
    assert made.job().state == record.RUNNING
    made.now_ns += 101 * SECOND
    made.lead()
    assert "ran longer than max_duration, 100 s" in made.job().error


def test_the_only_holder_of_a_checkpoint_dies() -> None:
    made = world("a", "b")
    made.submit(spec())
    job = at_step(made, 25)
    made.lead()
    made.die(job.attempt.workers[0].node)
    made.lead()
    made.now_ns += 4 * SECOND
    made.lead()
    job = made.job()
    assert (job.attempt.number, job.attempt.HasField("resume"), job.lost_steps) == (2, False, 25)
    assert "nobody holds its checkpoint of step 20 any more" in job.reason
    made.go_on(40)
    assert made.job().state == record.SUCCEEDED


def test_what_coordinators_kept_is_gone_on_from() -> None:
    made = world("a", "b")
    made.submit(spec())
    at_step(made, 25)
    made.write(paused(made.job(), ME))
    made.go_on(5)
    ran = made.job().attempt.workers[0].node
    made.kept = set(made.blobs.pop(ran))
    made.nodes = {name: each for name, each in made.nodes.items() if name != ran}
    made.write(resumed(made.job(), ME))
    made.go_on(40)
    assert (made.job().state, made.job().lost_steps) == (record.SUCCEEDED, 0)


def federated(**changes: object) -> training_pb2.JobSpec:
    return spec(
        least=3,
        strategy=training_pb2.STRATEGY_FEDERATED,
        federated=training_pb2.Federated(**changes),  # type: ignore[arg-type]
    )


def test_a_federated_job_does_without_a_client_and_not_without_its_aggregator() -> None:
    made = world("a", "b", "c")
    made.submit(federated(min_clients=2))
    at_step(made, 15)
    client = made.job().attempt.workers[2].node
    made.die(client)
    made.lead()
    made.now_ns += 10 * SECOND
    made.go_on(2)
    assert (made.job().phase, made.job().attempt.number) == (record.TRAINING, 1)
    made.come_back(client)
    made.fail(made.job().attempt.workers[0].node)
    made.lead()
    assert (made.job().attempt.number, made.job().failures) == (2, 1)
    made.go_on(40)
    assert made.job().state == record.SUCCEEDED


def test_a_federated_job_needs_its_fewest_clients() -> None:
    made = world("a", "b", "c")
    made.submit(federated(min_clients=3))
    at_step(made, 15)
    made.die("c")
    made.lead()
    made.now_ns += 10 * SECOND
    made.lead()
    assert (made.job().state, made.job().failures) == (record.PENDING, 1)


def test_a_plan_that_fails_is_not_read_twice() -> None:
    made = world("a")
    made.submit(spec())
    until(made, record.PLANNING)
    made.fail("a", message="the planner was killed")
    made.lead(times=3)
    assert (made.job().phase, made.job().failures) == (record.QUEUED, 1)
    made.go_on(40)
    assert (made.job().state, made.job().failures) == (record.SUCCEEDED, 1)


def test_gpus_are_each_workers_own() -> None:
    made = world("a", "b", gpus=2)
    asked = spec(least=1, most=4)
    asked.resources.gpus = 1
    asked.resources.gpu_memory_bytes = GIB
    made.submit(asked)
    workers = until(made, record.TRAINING).attempt.workers
    assert [(worker.node, list(worker.gpus)) for worker in workers] == [("a", [0]), ("a", [1]), ("b", [0]), ("b", [1])]


def test_a_job_that_has_waited_for_long_gets_the_nodes_that_become_free() -> None:
    made = world("a", "b", memory=4)
    for name in ("x", "y"):  # x ends some looks before y
        made.submit(spec(name, memory=3, stall_timeout=record.duration(7200 * SECOND)), name)
        made.go_on(6)
    made.submit(spec("large", least=2, memory=3), "large")
    made.go_on()
    made.now_ns += int(PATIENCE_S + 60) * SECOND
    starts: list[str] = []
    reasons: set[str] = set()
    for place in range(60):
        made.submit(spec("small", memory=3), f"small{place}")
        made.go_on()
        reasons.add(made.job("small0").reason)
        running = [job.id for job in made.jobs.values() if record.attempting(job)]
        starts += [job_id for job_id in running if job_id not in starts]
        if "large" in running:
            break
    assert starts == ["x", "y", "large"]
    assert any("is kept for large, which has waited for long" in each for each in reasons)


def test_a_wait_counts_from_the_first_queue_until_workers_train() -> None:
    made = world("a", "b")
    made.submit(spec(least=2))
    first = made.now_ns
    until(made, record.PREPARING)
    made.die("b")
    waiting = until(made, record.QUEUED)
    assert waiting.phase_at.ToNanoseconds() > waiting.waiting_since.ToNanoseconds() == first
    assert waits_long(waiting, first + int(PATIENCE_S + 1) * SECOND), "also in the eyes of a new leader"
    made.come_back("b")
    assert not until(made, record.TRAINING).HasField("waiting_since")
    made.die("b")
    again = until(made, record.QUEUED)
    assert again.waiting_since == again.phase_at, "it trained: another wait"


def test_a_pause_ends_a_wait() -> None:
    made = world("a")
    made.submit(spec(least=2))
    made.go_on()
    made.write(paused(made.job(), ME))
    assert not made.job().HasField("waiting_since")
    made.write(resumed(made.job(), Order("ann", "", made.now_ns)))
    assert made.job().waiting_since.ToNanoseconds() == made.now_ns
