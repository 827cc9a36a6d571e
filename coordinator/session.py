"""One agent's session, as the coordinator that holds it keeps it in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from aimesh.membership.v1 import membership_pb2
from coordinator import keys
from coordinator.etcd import Put
from coordinator.rollout.course import is_over
from coordinator.state import State
from coordinator.training.known import NO_JOBS, Known
from coordinator.training.orders import Tasks
from meshkit.errors import AimeshError, ConflictError, DeadlineError, ExhaustedError, InvalidInputError

HELLO_S = 10.0
"""How long a stream may say nothing before its first message."""
Basis = tuple[int, tuple[bytes, ...], tuple[str, ...], Tasks, Known]
"""What an Assignments message was made from: the assignment's revision, and the bytes of what may change beside it: the
scheduling of each of its models by name, their signatures and whose signatures count; which of them are traced;
the node's tasks of training jobs; and the jobs that it may hold something of."""
TRACED_EVERY = 1
"""Every request of a model with a rollout is traced: a sample would have to be the same share of both versions'
requests at every moment, or the times at which one is busier would weigh more and look like a difference."""


@dataclass
class Session:
    """One agent's stream. Only its own task and the sessions' loops touch it."""

    node: membership_pb2.Node
    lease: int
    mod_revision: int
    """Of the node's key, as this session wrote it last."""
    last_seen: float
    report: membership_pb2.ModelReport
    """As the agent sent it last, progress included."""
    load: membership_pb2.Load | None = None
    outgoing: asyncio.Queue[membership_pb2.CoordinatorMessage | None] = field(
        default_factory=lambda: asyncio.Queue(maxsize=16)
    )
    sent: Basis | None = None
    """Of the assignments sent last; None before the first."""
    leaving: bool = False
    ended: AimeshError | None = None
    """Why the coordinator ends the session; None while it does not."""
    writes: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def suspect(self) -> bool:
        """Whether the agent is silent."""
        return self.node.state == membership_pb2.NODE_STATE_SUSPECT

    def end(self, error: AimeshError | None = None) -> None:
        """Ends the stream after what is queued, with the first error given; drops a message when the queue is full."""
        self.ended = self.ended or error
        if self.outgoing.full():
            self.outgoing.get_nowait()
        self.outgoing.put_nowait(None)

    def told(self, state: State, tasks: Tasks = (), jobs: Known = NO_JOBS) -> bool:
        """Whether the node's assignment, its tasks and its jobs are those that were sent last."""
        sent, revision = self.sent, state.assignment_revisions.get(self.node.id, 0)
        return sent is not None and (sent[0], *sent[-2:]) == (revision, tasks, jobs)

    def assign(self, state: State, tasks: Tasks = (), jobs: Known = NO_JOBS) -> None:
        """Queues the node's assignments when they changed. A full queue ends the session: its agent reads no more."""
        node_id = self.node.id
        held = sorted(key for key in state.assignments.get(node_id, ()) if key in state.versions)
        policies = [state.deployments[name].policy if name in state.deployments else None for name, _ in held]
        scheduling = {
            name: policy.scheduling
            for (name, _), policy in zip(held, policies, strict=True)
            if policy is not None and policy.HasField("scheduling")
        }
        revision = state.assignment_revisions.get(node_id, 0)
        vouched = [state.trust, *(each for key in held for each in state.versions[key].signatures)]
        said = (each.SerializeToString(deterministic=True) for each in (*scheduling.values(), *vouched))
        beside = (*map(str.encode, scheduling), *said)
        traced = tuple(sorted(traced_names(state) & {name for name, _ in held}))
        basis = revision, beside, traced, tasks, jobs
        if basis == self.sent:
            return
        self.sent = basis
        assignments = membership_pb2.Assignments(
            revision=revision,
            models=[state.versions[key] for key in held],
            scheduling=scheduling,
            trust=state.trust,
            traced=dict.fromkeys(traced, TRACED_EVERY),
            tasks=tasks,
            jobs=membership_pb2.KnownJobs(ids=jobs.ids, unfinished=jobs.unfinished),
        )
        try:
            self.outgoing.put_nowait(membership_pb2.CoordinatorMessage(assignments=assignments))
        except asyncio.QueueFull:
            self.end(ExhaustedError(f"node {node_id} does not read its messages"))


def traced_names(state: State) -> frozenset[str]:
    """The models with a rollout that is not over."""
    return frozenset(name for name, rollout in state.rollouts.items() if not is_over(rollout))


def node_puts(node: membership_pb2.Node, lease: int) -> list[Put]:
    """The writes of a node: under its lease, and once more for good."""
    value = keys.encode(node)
    return [Put(keys.node(node.id), value, lease), Put(keys.member(node.id), value)]


def state_of(session: Session, report: membership_pb2.ModelReport) -> membership_pb2.NodeState.ValueType:
    """The node's state by what its agent says."""
    if session.leaving:
        return membership_pb2.NODE_STATE_DRAINING
    if report.triton.state == membership_pb2.TRITON_STATE_READY:
        return membership_pb2.NODE_STATE_READY
    return membership_pb2.NODE_STATE_JOINING


async def first_hello(messages: AsyncIterator[membership_pb2.AgentMessage]) -> membership_pb2.Hello:
    """The stream's first message. Raises InvalidInputError when it is something else, DeadlineError when none comes."""
    try:
        async with asyncio.timeout(HELLO_S):
            message = await anext(messages, None)
    except TimeoutError:
        raise DeadlineError(f"no message of Join came within {HELLO_S:g} s", hint="send hello first") from None
    if message is None or message.WhichOneof("body") != "hello":
        raise InvalidInputError("the first message of Join must be hello")
    return message.hello


def refuse_second_agent(hello: membership_pb2.Hello, held: bytes) -> None:
    """Raises ConflictError when the node's key is another agent's."""
    holder = keys.parse(held, membership_pb2.Node())
    if holder.instance_id != hello.instance_id:
        raise ConflictError(
            f"node id {hello.node_id!r} is held by another agent (process {holder.pid} at {holder.address})",
            hint="give this agent another node_id; if the other is dead, its lease lapses in a few seconds",
            reason="NODE_ID_TAKEN",
        )
