"""What is done to jobs, as data. Roles beside those of `tests/chaos/scenarios.py`: `rank-0` and so on are the nodes of
the job's workers when it begins, `worker:NODE` is the process that trains there.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tests.chaos import check, models
from tests.chaos.acts import Deploy, Hit, Ready, Undeploy, arm, go_on, kill, link, start, stop, terminate
from tests.chaos.proxy import CUT, NO_FAULT
from tests.chaos.scenarios import LEADER_TTL_S, NODE_TTL_S
from tests.chaos.training.acts import Act, Checkpointed, Flip, Phase, Trains, machine
from tests.chaos.training.check import UNNOTICED, Bars
from tests.chaos.training.job import Asked

LEADERLESS_S = LEADER_TTL_S + 2.0
BESIDE = check.Bars(calm_s=0.0, stays=True, keeps=True)
"""No request takes longer than a second, no Triton is another afterwards."""
LOST_NODE = check.Bars(calm_s=1.0)
ALL_THREE = Trains(workers=3)

Step = tuple[float, Act]
"""(seconds since the beginning, what then); a step that takes longer delays those after it."""


@dataclass(frozen=True)
class Scenario:
    """One job, and what is done to it."""

    name: str
    steps: tuple[Step, ...]
    bars: Bars = field(default_factory=Bars)
    mesh: check.Bars = BESIDE
    """What the mesh is held to, and the load on it."""
    before: tuple[Act, ...] = ()
    """Done before the job is submitted."""
    then: Act = field(default_factory=lambda: Trains(steps=3))
    """What is waited for when all is done."""
    after: tuple[Act, ...] = ()
    """Done when the job is over."""
    asked: Asked = field(default_factory=Asked)
    """What job it is."""


UNDISTURBED = Scenario("undisturbed", (), asked=Asked(least=1, most=1))
"""One worker alone: the loss of each step is the same however many there are."""
UNDISTURBED_ROUNDS = Scenario("undisturbed-rounds", (), asked=Asked(federated=True))


def _back(node: str, after_s: float) -> tuple[Step, ...]:
    """A machine that dies, and is back after a while."""
    return (0, machine(node)), (after_s, start(node))


def _again(times: int) -> tuple[Step, ...]:
    """A worker is killed, and each time that the job goes on, another one."""
    kills = [(0.0, kill(f"worker:rank-{number % 3}")) for number in range(times)]
    return tuple(step for each in kills for step in (each, (0.0, Trains(steps=3))))[:-1]


WORKERS = (
    Scenario("worker-killed", ((0, kill("worker:rank-1")),)),
    Scenario("first-worker-killed", ((0, kill("worker:rank-0")),)),
    Scenario("two-workers-killed", ((0, kill("worker:rank-1", "worker:rank-2")),)),
    Scenario("all-workers-killed", ((0, kill("worker:rank-0", "worker:rank-1", "worker:rank-2")),)),
    Scenario("worker-stopped", ((0, stop("worker:rank-1")),)),
    Scenario("killed-four-times", _again(4), Bars(attempts=5, failures=4), asked=Asked(budget=4)),
    Scenario(
        "killed-more-often-than-it-may-be",
        _again(3),
        Bars("FAILED", "SIGKILL", pause_s=None, attempts=3, failures=2),
        then=Phase(""),
        asked=Asked(budget=2),
    ),
)
MACHINES = (
    Scenario("agent-killed", ((0, kill("rank-1")), (3, start("rank-1"))), UNNOTICED),
    Scenario("agent-stopped", ((0, stop("rank-1")), (6, go_on("rank-1"))), UNNOTICED),
    Scenario(
        "agent-stopped-for-long",
        ((0, stop("rank-1")), (18, go_on("rank-1"))),
        Bars(attempts=None, workers=3, twice=100),
        mesh=check.Bars(),
        then=ALL_THREE,
    ),
    Scenario("all-agents-killed", ((0, kill("node*")), (0, start("node*"))), UNNOTICED),
    Scenario(
        "machine-killed-and-back", _back("rank-1", 3), Bars(attempts=None, workers=3), mesh=LOST_NODE, then=ALL_THREE
    ),
    Scenario(
        "machine-lost",
        ((0, machine("rank-1")), (NODE_TTL_S + 1, Trains(workers=2))),
        Bars(attempts=None, workers=2),
        mesh=LOST_NODE,
        after=(start("rank-1"),),
    ),
    Scenario(
        "first-machine-killed-and-back",
        _back("rank-0", 3),
        Bars(attempts=None, workers=3),
        mesh=LOST_NODE,
        then=ALL_THREE,
    ),
    Scenario(
        "first-machine-lost",
        ((0, machine("rank-0")), (NODE_TTL_S + 1, Trains(workers=2))),
        Bars(attempts=None, workers=2, unheard_steps=15),
        mesh=LOST_NODE,
        after=(start("rank-0"),),
    ),
    Scenario(
        "node-joins",
        ((0, start("node-3")),),
        Bars(attempts=2, failures=0, workers=3),
        before=(terminate("node-3"),),
        then=ALL_THREE,
        mesh=check.Bars(),
    ),
    Scenario(
        "node-joins-a-job-planned-for-one",
        ((0, start("node-2")),),
        Bars(attempts=2, failures=0, workers=2),
        before=(terminate("node-2"), terminate("node-3")),
        then=Trains(workers=2),
        after=(start("node-3"),),
        mesh=check.Bars(),
        asked=Asked(least=1, most=2, auto=True),
    ),
)
CONTROL = (
    Scenario("leader-killed", ((0, kill("leader")), (7, start("leader"))), UNNOTICED),
    Scenario("all-coordinators-killed", ((0, kill("coordinator*")), (8, start("coordinator*"))), UNNOTICED),
    Scenario("etcd-leader-killed", ((0, kill("etcd-leader")), (3, start("etcd-leader"))), UNNOTICED),
    Scenario("all-etcd-gone-for-15-s", ((0, kill("etcd*")), (15, start("etcd*"))), UNNOTICED),
    Scenario(
        "leader-and-worker-killed",
        ((0, kill("leader", "worker:rank-1")), (LEADERLESS_S, start("leader"))),
        Bars(pause_s=LEADERLESS_S + 10.0),
    ),
    Scenario(
        "worker-killed-while-coordinators-are-away",
        ((0, kill("coordinator*")), (2, kill("worker:rank-1")), (8, start("coordinator*"))),
        Bars(pause_s=None, again_s=LEADERLESS_S + 10.0, attempts=None),
    ),
    Scenario(
        "worker-killed-while-etcd-is-gone",
        ((0, kill("etcd*")), (2, kill("worker:rank-1")), (8, start("etcd*"))),
        Bars(pause_s=None, again_s=LEADERLESS_S + 10.0, attempts=None),
    ),
    Scenario(
        "leader-dies-when-it-has-written-the-next-attempt",
        (
            (0, arm("leader", "training.written=exit")),
            (0, kill("worker:rank-1")),
            (0, Hit(("leader",), "training.written")),
            (0, arm("leader", "")),
            (2, start("hit")),
        ),
        Bars(pause_s=LEADERLESS_S + 10.0),
    ),
    Scenario(
        "deposed-leader-writes-late",
        (
            (0, arm("leader", "training.decided=stop#1")),
            (0, kill("worker:rank-1")),
            (0, Hit(("leader",), "training.decided", ends=False)),
            (0, arm("leader", "")),
            (LEADERLESS_S + 3.0, go_on("hit")),
        ),
        Bars(pause_s=LEADERLESS_S + 10.0),
    ),
)
LINKS = (
    Scenario(
        "agent-cut-off",
        ((0, link("rank-1", "coordinator*", CUT)), (6, link("rank-1", "coordinator*", NO_FAULT))),
        UNNOTICED,
        mesh=check.Bars(stays=True, keeps=True),
    ),
)
ROOM = (
    Scenario(
        "deployment-needs-the-room",
        (
            (0, Deploy("large", models.LARGE, wait=False)),
            (0, Phase("queued")),
            (0, Ready("large", within_s=60.0)),
            (0, Undeploy("large")),
        ),
        Bars(pause_s=None, again_s=20.0, failures=0, preemptions=1),
        asked=Asked(least=3),
    ),
    Scenario(
        "byte-flipped-in-a-checkpoint",
        ((0, Checkpointed()), (0, Flip("rank-1")), (0, kill("worker:rank-2"))),
        Bars(attempts=None),
    ),
    Scenario(
        "disk-is-full",
        (
            (0, arm("rank-1", "blob.append=nospace;checkpoint.write=nospace")),
            (0, Hit(("rank-1",), "checkpoint.write", ends=False)),
            (4, arm("rank-1", "")),
            (4, Checkpointed()),
        ),
        UNNOTICED,
    ),
)
ROUNDS = tuple(
    replace(each, name=f"federated-{each.name}", asked=replace(each.asked, federated=True))
    for each in (
        Scenario("client-killed", ((0.5, kill("worker:rank-1")),), replace(UNNOTICED, pause_s=10.0, twice=0)),
        Scenario("aggregator-killed", ((0.5, kill("worker:rank-0")),), Bars(twice=1), asked=Asked(least=3)),
        Scenario(
            "client-machine-killed-and-back",
            _back("rank-1", 3),
            replace(UNNOTICED, pause_s=3 + 10.0, twice=0),
            mesh=LOST_NODE,
        ),
        Scenario(
            "client-machine-lost",
            ((0, machine("rank-1")), (NODE_TTL_S + 1, Trains())),
            replace(UNNOTICED, pause_s=10.0, twice=0, same_curve=False),
            mesh=LOST_NODE,
            after=(start("rank-1"),),
            asked=Asked(deadline_s=2),
        ),
        Scenario(
            "aggregator-machine-killed-and-back",
            _back("rank-0", 3),
            Bars(pause_s=3 + 10.0, attempts=None, twice=1),
            mesh=LOST_NODE,
            asked=Asked(least=3),
        ),
        Scenario("leader-killed", ((0, kill("leader")), (7, start("leader"))), replace(UNNOTICED, twice=0)),
    )
)
SCENARIOS = (*WORKERS, *MACHINES, *CONTROL, *LINKS, *ROOM, *ROUNDS)
