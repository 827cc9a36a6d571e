"""Any order of losses, joins, orders and looks: what must hold at every moment, and where it ends."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aimesh.training.v1 import training_pb2
from coordinator.order import Order
from coordinator.training import record
from coordinator.training.orders import Orders
from coordinator.training.reserved import taken_by
from coordinator.training.steering import cancelled, paused, resumed
from coordinator.training.watch import JobWatch
from meshkit.errors import PreconditionError
from tests.unit.coordinator.training.world import GIB, SECOND, World, growing, node, spec

NAMES = ("a", "b", "c", "d")
FAILURES = 2
ME = Order("ann", "", 0)


class Jobs(RuleBasedStateMachine):
    """Up to three jobs on up to four nodes."""

    @initialize(names=st.sets(st.sampled_from(NAMES), min_size=1))
    def begin(self, names: set[str]) -> None:
        self.world = World({name: node(name, memory=5) for name in names})
        self.orders = Orders()
        self.checked = 0
        self.submit(1, 2, 0, federated=False, reserved=False)

    @rule(
        least=st.integers(1, 3),
        more=st.integers(0, 2),
        priority=st.integers(0, 2),
        federated=st.booleans(),
        reserved=st.booleans(),
        grows=st.booleans(),
    )
    def submit(
        self, least: int, more: int, priority: int, *, federated: bool, reserved: bool, grows: bool = False
    ) -> None:
        if len(self.world.jobs) == 3:
            return
        restarts = training_pb2.RestartBudget(failures=FAILURES)
        strategy = training_pb2.STRATEGY_FEDERATED if federated else training_pb2.STRATEGY_AUTO
        name = f"j{len(self.world.jobs)}"
        asked = spec(
            name, least, least + more, priority=priority, reserved=reserved, restarts=restarts, strategy=strategy
        )
        job_id = self.world.submit(asked)
        if grows and least == 1 and not federated:
            tensor, ddp = training_pb2.STRATEGY_TENSOR, training_pb2.STRATEGY_DDP
            self.world.plans[job_id] = growing(asked, *[(tensor, 2), (ddp, 3)][:more])

    @rule(times=st.integers(1, 6))
    def it_goes_on(self, times: int) -> None:
        self.world.go_on(times)

    @rule()
    def the_leader_looks(self) -> None:
        self.world.lead()

    @rule(name=st.sampled_from(NAMES))
    def an_agent_acts(self, name: str) -> None:
        if name in self.world.nodes:
            self.world.agents(name)

    @rule(name=st.sampled_from(NAMES), may_retry=st.sampled_from([True, True, True, False]))
    def workers_fail(self, name: str, *, may_retry: bool) -> None:
        self.world.fail(name, may_retry=may_retry)

    @rule(name=st.sampled_from(NAMES))
    def a_node_falls_silent(self, name: str) -> None:
        if name in self.world.nodes:
            self.world.die(name)

    @rule(name=st.sampled_from(NAMES))
    def a_node_comes(self, name: str) -> None:
        if name not in self.world.nodes:
            self.world.nodes = {**self.world.nodes, name: node(name, memory=5)}
        self.world.come_back(name)

    @rule(name=st.sampled_from(NAMES))
    def a_node_is_drained_or_not(self, name: str) -> None:
        held = dict(self.world.drains)
        if held.pop(name, None) is None:
            held[name] = 1
        self.world.drains = held

    @rule()
    def another_leads(self) -> None:
        self.world.watch = JobWatch()

    @rule(seconds=st.integers(1, 20))
    def time_passes(self, seconds: int) -> None:
        self.world.now_ns += seconds * SECOND

    @precondition(lambda self: self.world.jobs)
    @rule(data=st.data(), what=st.sampled_from([paused, paused, cancelled, resumed, resumed]))
    def somebody_orders(self, data: st.DataObject, what: object) -> None:
        job = self.world.job(data.draw(st.sampled_from(sorted(self.world.jobs))))
        try:
            made = what(job, ME)  # type: ignore[operator]
        except PreconditionError:
            return
        self.world.write(made)

    @invariant()
    def one_attempt_at_a_time(self) -> None:
        if not hasattr(self, "world"):
            return
        given = Orders().of(self.world.seen())
        assert given == self.orders.of(self.world.state), "what is remembered is what would be worked out"
        for job in self.world.jobs.values():
            own = [task for tasks in given.values() for task in tasks if task.job == job.id]
            assert {task.attempt for task in own} <= {job.attempt.number, 0}
            assert len({task.rank for task in own}) == len(own)
            assert all(task.go == job.attempt.go for task in own if task.kind == training_pb2.TASK_KIND_TRAIN)

    @invariant()
    def each_record_follows_from_the_one_before(self) -> None:
        history = self.world.history if hasattr(self, "world") else []
        for place in range(self.checked, len(history)):
            now = history[place]
            before = next((each for each in reversed(history[:place]) if each.id == now.id), None)
            self._follows(before, now)
        self.checked = len(history)

    def _follows(self, before: training_pb2.Job | None, now: training_pb2.Job) -> None:
        if before is None:
            return
        assert not record.is_over(before), f"{now.id} goes on after its end"
        assert now.attempt.number in (before.attempt.number, before.attempt.number + 1)
        assert before.failures <= now.failures <= FAILURES
        assert now.reason or now.phase in (record.TRAINING, record.PREPARING)
        assert bool(now.error) == (now.state == record.FAILED)
        lost_all = "nobody holds" in now.reason
        assert now.checkpoint.step >= before.checkpoint.step or lost_all
        if now.attempt.number != before.attempt.number:
            assert not now.attempt.go
            assert not now.attempt.stop
            nodes = [worker.node for worker in now.attempt.workers]
            assert len(set(nodes)) == len(nodes) >= now.spec.resources.min_workers

    @invariant()
    def no_node_is_promised_twice(self) -> None:
        for name in self.world.nodes if hasattr(self, "world") else ():
            taken = sum(taken_by(job)[name].memory for job in self.world.jobs.values() if name in taken_by(job))
            assert taken <= 5 * GIB

    def teardown(self) -> None:
        """Once nothing happens any more, each job has ended, or says what it waits for."""
        if not hasattr(self, "world"):
            return
        for name in self.world.nodes:
            self.world.come_back(name)
        self.world.drains = {}
        for _ in range(6):
            self.world.now_ns += 20 * SECOND
            self.world.go_on(30)
            if all(record.is_over(job) or job.phase == record.NONE for job in self.world.jobs.values()):
                break
        for job in self.world.jobs.values():
            waits = job.state == record.PENDING and "waits for" in job.reason
            too_few = job.spec.resources.min_workers > len(self.world.nodes)
            assert record.is_over(job) or job.state == record.PAUSED or (waits and too_few), job


Jobs.TestCase.settings = settings(max_examples=25, stateful_step_count=25)
TestJobs = Jobs.TestCase
