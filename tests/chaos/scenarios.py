"""The scenarios as data: what is done when, and what it is held to.

Names in acts are processes (`etcd-1`, `gateway`), or roles that are given out when a scenario begins: `victim` and
`peer` serve the model, `spare` does not; `leader`, `follower` and `follower2` are coordinators; `member` and `member2`
are etcd members that do not lead etcd, `etcd-leader` does; `holder` is the coordinator that the victim is in session
with. `triton:victim` is the Triton of that node. A `*` at the end means all of a kind: `coordinator*`, `etcd*`,
`node*`. The words for faults are in `tests/chaos/acts.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tests.chaos import models
from tests.chaos.acts import (
    Act,
    Clock,
    Deploy,
    Hit,
    Ready,
    Recover,
    Start,
    Undeploy,
    arm,
    go_on,
    hand_over,
    kill,
    link,
    start,
    stop,
    terminate,
)
from tests.chaos.check import Bars
from tests.chaos.proxy import ANYBODY, BLACK_HOLE, CUT, MUTE_SERVER, NO_FAULT, Fault, slow

LEADER_TTL_S = 5
NODE_TTL_S = 10
"""The defaults, which the scenarios keep."""
HANG_TIMEOUT_S = 6.0
"""agent.triton.hang_timeout_s in the scenarios; 20 by default."""

QUIET = Bars(calm_s=0.0, stays=True, same_leader=True)
"""No client notices anything, nothing moves."""
SUCCESSION = Bars(calm_s=0.0, stays=True, vacant_s=2.0, leaderless_s=LEADER_TTL_S + 2.0)
"""Another leads in time, no client notices anything."""
HANDOVER = Bars(calm_s=0.0, stays=True, vacant_s=2.0, leaderless_s=2.0)
"""Another leads at once, no client notices anything."""
LOST_NODE = Bars(leaves_s=1.0, calm_s=1.0)
"""The node is out of the routes within a second, and what is asked after that is answered promptly."""

SHORT = frozenset(
    {
        "agent-and-triton-killed",
        "agent-cut-from-coordinators",
        "agent-killed",
        "all-coordinators-killed",
        "all-etcd-gone-for-15-s",
        "clients-cut-from-a-node",
        "clocks-jump-an-hour-ahead",
        "etcd-leader-killed",
        "etcd-member-killed",
        "follower-killed",
        "leader-and-node-killed",
        "leader-killed",
        "leader-stopped",
        "model-store-is-full",
        "new-leader-dies-before-its-first-write",
        "node-is-slow",
        "triton-hangs-without-dying",
        "triton-killed",
        "agent-dies-at-model.loaded",
    }
)
"""What every run of all tests plays; it has to take less than four minutes with the soak."""

Step = tuple[float, Act]
"""(seconds since the beginning, what then); a step that takes longer delays those after it."""


@dataclass(frozen=True)
class Scenario:
    """One fault, its healing, and what must hold."""

    name: str
    steps: tuple[Step, ...]
    bars: Bars = field(default_factory=Bars)

    @property
    def long(self) -> bool:
        """Not in every run: only with --chaos=all."""
        return self.name not in SHORT


def _for(seconds: float, client: str, server: str, fault: Fault) -> tuple[Step, ...]:
    """A fault on a link for some seconds."""
    return (0, link(client, server, fault)), (seconds, link(client, server, NO_FAULT))


def _clock(offset_s: int) -> tuple[Step, ...]:
    """Jumps of every clock but etcd's, there and back; an agent and a coordinator start in between."""
    return (
        (0, Clock(("coordinator*", "node*"), offset_s)),
        (2, kill("victim", "follower")),
        (2, start("victim", "follower")),
        (4, Clock(("coordinator*", "node*"), 0)),
    )


CLIENTS = "clients"

TRITON = (
    Scenario("triton-killed", ((0, kill("triton:victim")), (0, Recover(("victim",)))), LOST_NODE),
    Scenario("triton-stopped-for-a-while", ((0, stop("triton:victim")), (3, go_on("triton:victim"))), Bars(stays=True)),
    Scenario(
        "triton-hangs-without-dying",
        ((0, stop("triton:victim")), (0, Recover(("victim",)))),
        Bars(leaves_s=HANG_TIMEOUT_S + 3.0, calm_s=HANG_TIMEOUT_S + 3.0),
    ),
    Scenario("node-is-slow", _for(4, CLIENTS, "victim", slow(0.2)), QUIET),
)
AGENT = (
    Scenario("agent-killed", ((0, kill("victim")), (3, start("victim"))), Bars(calm_s=0.0, stays=True, keeps=True)),
    Scenario("agent-stopped", ((0, stop("victim")), (6, go_on("victim"))), Bars(calm_s=0.0, stays=True, keeps=True)),
    Scenario(
        "agent-handed-over", ((0, hand_over("victim")), (0, start("victim"))), Bars(calm_s=0.0, stays=True, keeps=True)
    ),
    Scenario("agent-restarted", ((0, terminate("victim")), (0, start("victim"))), Bars(calm_s=1.0)),
    Scenario("agent-and-triton-killed", ((0, kill("victim", "triton:victim")), (3, start("victim"))), LOST_NODE),
    Scenario(
        "agent-and-triton-stopped",
        ((0, stop("victim", "triton:victim")), (7, go_on("victim", "triton:victim"))),
        Bars(leaves_s=5.0, calm_s=5.0),
    ),
    Scenario(
        "node-lost-for-good",
        ((0, kill("victim", "triton:victim")), (NODE_TTL_S + 1, Ready("adder", within_s=8.0)), (0, start("victim"))),
        LOST_NODE,
    ),
    Scenario("all-agents-killed", ((0, kill("node*")), (3, start("node*"))), Bars(calm_s=0.0, stays=True, keeps=True)),
)
COORDINATORS = (
    Scenario("follower-killed", ((0, kill("follower")), (2, start("follower"))), QUIET),
    Scenario("follower-stopped", ((0, stop("follower")), (6, go_on("follower"))), QUIET),
    Scenario("follower-restarted", ((0, terminate("follower")), (0, start("follower"))), QUIET),
    Scenario("leader-killed", ((0, kill("leader")), (7, start("leader"))), SUCCESSION),
    Scenario("leader-stopped", ((0, stop("leader")), (8, go_on("leader"))), SUCCESSION),
    Scenario("leader-restarted", ((0, terminate("leader")), (0, start("leader"))), HANDOVER),
    Scenario(
        "all-coordinators-killed",
        ((0, kill("coordinator*")), (4, start("coordinator*"))),
        Bars(calm_s=0.0, stays=True, keeps=True),
    ),
    Scenario(
        "all-coordinators-away-for-longer-than-every-lease",
        ((0, kill("coordinator*")), (NODE_TTL_S + 5, start("coordinator*"))),
        Bars(calm_s=0.0, stays=True, keeps=True, stale_s=math.inf),
    ),
    Scenario(
        "node-restarts-while-coordinators-are-away",
        (
            (0, kill("coordinator*")),
            (0, kill("victim", "triton:victim")),
            (1, Start(("victim",), wait=False)),
            (7, start("coordinator*")),
            (7, Recover(("victim",))),
        ),
        Bars(stale_s=math.inf, calm_s=2.0),
    ),
)
ETCD = (
    Scenario("etcd-member-killed", ((0, kill("member")), (3, start("member"))), QUIET),
    Scenario("etcd-member-stopped", ((0, stop("member")), (5, go_on("member"))), QUIET),
    Scenario("etcd-leader-killed", ((0, kill("etcd-leader")), (3, start("etcd-leader"))), QUIET),
    Scenario("etcd-leader-stopped", ((0, stop("etcd-leader")), (5, go_on("etcd-leader"))), QUIET),
    Scenario("etcd-member-restarted", ((0, terminate("member")), (0, start("member"))), QUIET),
    Scenario("all-etcd-gone-for-15-s", ((0, kill("etcd*")), (15, start("etcd*"))), Bars(calm_s=0.0, stays=True)),
    Scenario("all-etcd-gone-for-60-s", ((0, kill("etcd*")), (60, start("etcd*"))), Bars(calm_s=0.0, stays=True)),
    Scenario("all-etcd-stopped-for-60-s", ((0, stop("etcd*")), (60, go_on("etcd*"))), Bars(calm_s=0.0, stays=True)),
)
MODELS = (
    Scenario(
        "model-load-fails",
        ((0, Deploy("broken", models.RAISES, fails="no such thing")), (0, Undeploy("broken"))),
        QUIET,
    ),
    Scenario(
        "model-load-runs-out-of-memory",
        ((0, Deploy("hungry", models.HUNGRY, fails="MemoryError")), (0, Undeploy("hungry"))),
        QUIET,
    ),
    Scenario(
        "model-is-killed-while-it-loads",
        ((0, Deploy("killed", models.KILLED, fails="killed, or crashed")), (0, Undeploy("killed"))),
        QUIET,
    ),
    Scenario(
        "model-store-is-full",
        ((0, Deploy("large", models.PLAIN, fails="model store", ballast_bytes=40 << 20)), (0, Undeploy("large"))),
        QUIET,
    ),
    Scenario(
        "disk-is-full",
        (
            (0, arm("node*", "blob.append=nospace")),
            (0, Deploy("late", models.PLAIN, fails="no space left")),
            (0, arm("node*", "")),
            (0, Ready("late", within_s=20.0)),
            (0, Undeploy("late")),
        ),
        QUIET,
    ),
)
PARTITIONS = (
    Scenario("agent-cut-from-coordinators", _for(6, "victim", "coordinator*", CUT), Bars(stays=True, keeps=True)),
    Scenario(
        "triton-killed-while-its-agent-is-cut-off",
        (
            (0, link("victim", "coordinator*", CUT)),
            (2, kill("triton:victim")),
            (2, Recover(("victim",))),
            (6, link("victim", "coordinator*", NO_FAULT)),
        ),
        Bars(leaves_s=4.0),
    ),
    Scenario(
        "agent-does-not-hear-coordinators",
        _for(8, "victim", "coordinator*", MUTE_SERVER),
        Bars(calm_s=0.0, stays=True, keeps=True),
    ),
    Scenario(
        "agent-in-a-black-hole",
        _for(8, "victim", "coordinator*", BLACK_HOLE),
        Bars(calm_s=0.0, stays=True, keeps=True),
    ),
    Scenario("leader-cut-from-etcd", _for(8, "leader", "etcd*", CUT), SUCCESSION),
    Scenario("leader-in-a-black-hole-from-etcd", _for(NODE_TTL_S + 5, "leader", "etcd*", BLACK_HOLE), SUCCESSION),
    Scenario(
        "holder-cut-from-etcd-for-long", _for(NODE_TTL_S + 5, "holder", "etcd*", CUT), Bars(calm_s=0.0, stays=True)
    ),
    Scenario("clients-cut-from-a-node", _for(4, CLIENTS, "victim", CUT), QUIET),
    Scenario(
        "clients-in-a-black-hole-from-a-node", _for(16, CLIENTS, "victim", BLACK_HOLE), Bars(calm_s=14.0, prompt_s=3.0)
    ),
    Scenario("clients-cut-from-coordinators", _for(4, CLIENTS, "coordinator*", CUT), QUIET),
    Scenario("node-unreachable", _for(8, ANYBODY, "victim", BLACK_HOLE), Bars()),
)
TWO_AT_ONCE = (
    Scenario(
        "leader-and-node-killed",
        ((0, kill("leader", "victim", "triton:victim")), (8, start("leader", "victim"))),
        # When it was the leader that held the node's session, nobody asks for the node before that lease has ended.
        Bars(leaves_s=LEADER_TTL_S + 4.0, calm_s=1.0, vacant_s=2.0, leaderless_s=LEADER_TTL_S + 2.0),
    ),
    Scenario(
        "leader-and-etcd-leader-killed",
        ((0, kill("leader", "etcd-leader")), (9, start("leader", "etcd-leader"))),
        Bars(calm_s=0.0, stays=True, vacant_s=2.0, leaderless_s=2 * LEADER_TTL_S + 2.0),
    ),
    Scenario(
        "holder-and-node-killed",
        ((0, kill("holder", "victim", "triton:victim")), (4, start("holder", "victim"))),
        Bars(calm_s=1.0),
    ),
)
WINDOWS = (
    Scenario(
        "new-leader-dies-before-its-first-write",
        (
            (0, arm("follower", "election.won=exit")),
            (0, arm("follower2", "election.won=exit")),
            (0, kill("leader")),
            (0, Hit(("follower", "follower2"), "election.won")),
            (0, arm("coordinator*", "")),
            (0, Start(("leader", "hit"))),
        ),
        Bars(calm_s=0.0, vacant_s=2.0),
    ),
    Scenario(
        "deposed-leader-writes-late",
        (
            (0, arm("leader", "placement.decided=stop")),
            (0, Deploy("second", models.PLAIN, wait=False)),
            (0, Hit(("leader",), "placement.decided", ends=False)),
            # The gateway may have had its routes from the one that stands still, which it notices by its pings alone.
            (0, Ready("second", within_s=LEADER_TTL_S + 25.0)),
            (0, arm("leader", "")),
            (0, go_on("leader")),
            (1, Undeploy("second")),
        ),
        SUCCESSION,
    ),
    Scenario(
        "leader-dies-after-it-placed",
        (
            (0, arm("leader", "placement.written=exit")),
            (0, Deploy("second", models.PLAIN, wait=False)),
            (0, Hit(("leader",), "placement.written")),
            (0, arm("leader", "")),
            (6, Start(("leader",))),  # it alone may hold the blobs
            (6, Ready("second", within_s=15.0)),
            (0, Undeploy("second")),
        ),
        Bars(calm_s=0.0, stays=True, vacant_s=2.0),
    ),
    *(
        Scenario(
            f"coordinator-dies-at-{point}",
            (
                (0, arm("coordinator*", f"{point}=exit")),
                (0, kill("victim")),
                (0, Start(("victim",), wait=False)),
                (0, Hit(("coordinator*",), point)),
                (0, arm("coordinator*", "")),
                (0, Start(("coordinator*",))),
            ),
            Bars(calm_s=0.0, stays=True),
        )
        for point in ("session.lease_granted", "session.node_written")
    ),
    Scenario(
        "coordinator-dies-while-a-node-leaves",
        (
            (0, arm("coordinator*", "session.left_deleted=exit")),
            (0, terminate("spare")),
            (0, Hit(("coordinator*",), "session.left_deleted")),
            (0, arm("coordinator*", "")),
            (0, Start(("coordinator*", "spare"))),
        ),
        Bars(calm_s=0.0, stays=True),
    ),
    *(
        Scenario(
            f"agent-dies-at-{point}",
            (
                (0, arm("node*", f"{point}=exit")),
                (0, Deploy("second", models.PLAIN, wait=False)),
                (0, Hit(("node*",), point)),
                (0, arm("node*", "")),
                (0, Start(("hit",))),
                (0, Ready("second", within_s=20.0)),
                (0, Undeploy("second")),
            ),
            Bars(calm_s=0.0, stays=True, keeps=True),
        )
        for point in ("fetch.downloaded", "model.loaded")
    ),
    Scenario(
        "agent-dies-before-it-notes-its-triton",
        (
            (0, arm("victim", "triton.started=exit")),
            (0, kill("triton:victim")),
            (0, Hit(("victim",), "triton.started")),
            (0, arm("victim", "")),
            (0, Start(("victim",))),
        ),
        LOST_NODE,
    ),
)
CLOCK = (
    Scenario("clocks-jump-an-hour-ahead", _clock(3600), Bars(calm_s=0.0, stays=True, same_leader=True, keeps=True)),
    Scenario("clocks-jump-an-hour-back", _clock(-3600), Bars(calm_s=0.0, stays=True, same_leader=True, keeps=True)),
)
SCENARIOS = (*TRITON, *AGENT, *COORDINATORS, *ETCD, *MODELS, *PARTITIONS, *TWO_AT_ONCE, *WINDOWS, *CLOCK)
