"""Whatever happens in whatever order, a rollout loses nothing on its way, and it ends."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import HealthCheck, assume, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aimesh.membership.v1 import membership_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.order import Order
from coordinator.rollout.advance import BACK_PATIENCE_S
from coordinator.rollout.course import goal_of, rising, room_of
from coordinator.rollout.record import HELD, RUNNING, SUCCEEDED, Judged
from coordinator.rollout.steering import aborted, paused, promoted, resumed
from coordinator.state import State
from meshkit.errors import PreconditionError
from tests.unit.rollout.world import NAME, NEW, OLD, SECOND, World, canary, spec, state_of, target

STRATEGIES = ("canary", "rolling", "blue_green", "shadow", "experiment")
VERDICTS = (rollout_pb2.VERDICT_FAIL, rollout_pb2.VERDICT_INCONCLUSIVE, *[rollout_pb2.VERDICT_PASS] * 6)
HEALTHY = (membership_pb2.MODEL_STATE_READY, membership_pb2.MODEL_STATE_UNLOADING)


class RolloutMachine(RuleBasedStateMachine):
    """The leader, placement, agents, clients and people, each taking a step when it comes to it."""

    world: World

    @initialize(
        nodes=st.integers(1, 6),
        replicas=st.integers(1, 4),
        strategy=st.sampled_from(STRATEGIES),
        gated=st.booleans(),
        watch=st.booleans(),
    )
    def start(self, nodes: int, replicas: int, strategy: str, gated: bool, watch: bool) -> None:
        assume(nodes >= replicas)
        world = World(state_of(nodes, target(OLD, replicas)))
        wanted = _spec(strategy)
        wanted.gates.none = not gated
        wanted.step_timeout.seconds = 3600
        wanted.watch.seconds = 5 if watch else 0
        try:
            world.start(wanted)
        except PreconditionError as refused:
            assume(refused.reason != "ROLLOUT_NO_ROOM")
            raise
        self.world = world
        self.routed: tuple[State, int] = (self.world.state, 0)
        self.slow: set[str] = set()
        self.world.follow()

    @rule()
    def the_leader_looks(self) -> None:
        if self._nearly_given_up():
            self.clients_follow(slow=0)
        before, running, was = self.world.weights(), self.world.rollout.state == RUNNING, self.world.deployment
        self.world.lead()
        if running and self.world.deployment != was:
            self._in_order(was)
        serving = {version for _, version in self.world.state.serving}
        raised = {version for version, weight in self.world.weights().items() if weight > before.get(version, 0)}
        assert raised <= serving, "a weight before there was a replica that answers"
        kept = {version for version, count in self.world.replicas().items() if count}
        assert raised <= kept, "a weight for replicas that are given up"

    @rule()
    def placement_acts(self) -> None:
        before = self.world.state.assignments
        self.world.place()
        for node_id, held in self.world.state.assignments.items():
            assert len(held) == 1
            changed = before.get(node_id, frozenset()) - held
            assert not changed, f"{node_id} went from {changed} to {held} in place"

    @rule(data=st.data())
    def agents_act(self, data: st.DataObject) -> None:
        self.world.agents(*data.draw(st.sets(st.sampled_from(sorted(self.world.state.nodes)), min_size=1)))

    @rule(data=st.data())
    def some_nodes_are_slow(self, data: st.DataObject) -> None:
        """They do nothing while the mesh goes on: a version stays half loaded for long."""
        self.slow = data.draw(st.sets(st.sampled_from(sorted(self.world.state.nodes))))

    @rule(times=st.integers(1, 12), clients=st.booleans())
    def the_mesh_goes_on(self, times: int, clients: bool) -> None:
        """All but slow nodes, and the clients, which may be slow too."""
        for _ in range(times):
            self.the_leader_looks()
            self.placement_acts()
            if quick := self.world.state.nodes.keys() - self.slow:
                self.world.agents(*quick)
            if clients:
                self.clients_follow(0)
            self.world.now_ns += SECOND // 2
            self.requests_are_answered()

    @rule(slow=st.integers(0, 3))
    def clients_follow(self, slow: int) -> None:
        if slow:
            return
        self.world.follow()
        self.routed = (self.world.state, self.world.state.revision)

    @rule(seconds=st.floats(0.1, 3))
    def time_passes(self, seconds: float) -> None:
        self.world.now_ns += int(seconds * SECOND)

    @rule(verdict=st.sampled_from(VERDICTS))
    def it_is_judged(self, verdict: rollout_pb2.Verdict.ValueType) -> None:
        holds = self.world.rollout.phase in (rollout_pb2.PHASE_HOLDING, rollout_pb2.PHASE_WATCHING)
        self.world.judged = Judged(verdict, "as drawn") if holds and not self.world.rollout.spec.gates.none else None

    @precondition(lambda self: self.world.rollout.state == RUNNING)
    @rule(order=st.sampled_from([*[None] * 9, paused, aborted, promoted]))
    def somebody_orders(self, order: object) -> None:
        if order is None:  # people seldom do
            return
        if order is promoted and self.world.rollout.spec.WhichOneof("strategy") == "experiment":
            return
        try:
            self._set(order(self.world.rollout, Order("me", "", self.world.now_ns)))  # type: ignore[operator]
        except PreconditionError as refused:
            if "last step" not in refused.message:
                raise

    @precondition(lambda self: self.world.rollout.state in (HELD, rollout_pb2.ROLLOUT_STATE_PAUSED))
    @rule()
    def somebody_resumes(self) -> None:
        self._set(resumed(self.world.rollout, Order("me", "", self.world.now_ns)))

    @invariant()
    def weights_are_whole(self) -> None:
        if hasattr(self, "world"):
            assert sum(self.world.weights().values()) == 100

    @invariant()
    def requests_are_answered(self) -> None:
        """By a replica that each client knows, of a version that it gives requests to."""
        if not hasattr(self, "world"):
            return
        known, _ = self.routed
        alive = {
            (node.id, model.version)
            for node in self.world.state.nodes.values()
            for model in node.report.models
            if model.state in HEALTHY
        }
        for each in known.deployments[NAME].targets:
            endpoints = {(node.id, each.version) for node in known.serving.get((NAME, each.version), ())}
            if each.weight and endpoints:
                assert endpoints & alive, f"clients ask {each.version} at {endpoints}, and nobody is there"
        routed = {each.version for each in self.world.deployment.targets if each.weight}
        answering = sum(len(self.world.state.serving.get((NAME, version), ())) for version in routed)
        assert answering >= room_of(self.world.rollout).least

    @invariant()
    def decisions_are_bounded(self) -> None:
        if hasattr(self, "world"):
            assert len(self.world.rollout.decisions) <= 100

    def teardown(self) -> None:
        """Left alone, it ends: as it was, or with the new version alone."""
        if not hasattr(self, "world"):
            return
        self.world.judged = None
        for order in (resumed,):
            if self.world.rollout.state in (HELD, rollout_pb2.ROLLOUT_STATE_PAUSED):
                self._set(order(self.world.rollout, Order("me", "", self.world.now_ns)))
        ended = self.world.run()
        if ended.state == SUCCEEDED and ended.steps[-1].targets != ended.before.targets:
            assert self.world.weights() == {NEW: 100}
            assert set(self.world.replicas()) == {NEW}
        else:
            assert self.world.deployment == ended.before

    def _nearly_given_up(self) -> bool:
        """On the way back clients are waited for only so long; those of these tests are slow, but not as slow."""
        rollout = self.world.rollout
        patience = int((BACK_PATIENCE_S - 5) * SECOND)
        waits = rollout.state == rollout_pb2.ROLLOUT_STATE_ROLLING_BACK and rollout.awaited_revision != 0
        return waits and self.world.now_ns > rollout.since.ToNanoseconds() + patience

    def _in_order(self, was: routing_pb2.Deployment) -> None:
        """Forward, a version gets more requests, or copies, only once all of its replicas answer and clients know them.

        Of those that the deployment has and the step wants. Its replicas go only once clients know that it gets none.
        On the way back requests move first.
        """
        now, goal = self.world.deployment, goal_of(self.world.rollout)
        weights = {each.version: each.weight for each in was.targets}
        raised = {each.version for each in now.targets if each.weight > weights.get(each.version, 0)}
        if now.policy.mirror.version != was.policy.mirror.version:
            raised |= {now.policy.mirror.version} - {""}
        held = {each.version: each.replicas for each in now.targets}
        wanted = {each.version: each.replicas for each in goal.targets}
        known, _ = self.routed
        for version in raised & rising(goal, self.world.rollout.before):
            needed = min(held[version], wanted[version])
            assert needed > 0
            answering = len(self.world.state.serving.get((NAME, version), ()))
            assert answering >= needed, f"{version} gets more with {answering} of {needed} replicas"
            told = len(known.serving.get((NAME, version), ()))
            assert told >= needed, f"{version} gets more, and clients know {told} of {needed} replicas"
        asked = {each.version for each in known.deployments[NAME].targets if each.weight}
        for each in was.targets:
            if not each.weight and held.get(each.version, 0) < each.replicas:
                assert each.version not in asked, f"replicas of {each.version} go, and clients still ask them"

    def _set(self, rollout: rollout_pb2.Rollout) -> None:
        state = self.world.state
        self.world.state = replace(state, rollouts={NAME: rollout}, revision=state.revision + 1)


def _spec(strategy: str) -> rollout_pb2.RolloutSpec:
    if strategy == "canary":
        return canary(10, 50, 100)
    wanted = spec()
    if strategy == "rolling":
        wanted.rolling.SetInParent()
    elif strategy == "blue_green":
        wanted.blue_green.keep.seconds = 2
    elif strategy == "shadow":
        wanted.shadow.duration.seconds = 2
    else:
        wanted.version = ""
        wanted.experiment.header = "x-user"
        wanted.experiment.duration.seconds = 2
        for version in (OLD, NEW):
            wanted.experiment.arms.add(version=version, percent=50)
    return wanted


TestRollout = RolloutMachine.TestCase
TestRollout.settings = settings(max_examples=50, stateful_step_count=60, suppress_health_check=list(HealthCheck))
