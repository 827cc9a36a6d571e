"""The reconciler's decisions: properties over every state, and convergence of a node that carries them out."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from node_agent.plan import FAILED, FETCHING, LOADING, READY, UNLOADING, Action, Held, decide, next_retry

_NAMES = st.sampled_from(["a", "b", "c"])
_KEYS = st.sampled_from(["v1", "v2"])
_HELD = st.builds(
    Held,
    key=_KEYS,
    state=st.sampled_from([FETCHING, LOADING, READY, FAILED, UNLOADING]),
    busy=st.booleans(),
    cancelled=st.booleans(),
    pinned=st.booleans(),
    generation=st.integers(0, 2),
    retry_at=st.floats(0, 10),
)
_WANTED = st.dictionaries(_NAMES, _KEYS)
_NODE = st.dictionaries(_NAMES, _HELD)
_GENERATION = st.integers(0, 2)
_NOW = st.floats(0, 10)


@given(_WANTED, _NODE, _GENERATION, _NOW)
def test_no_action_contradicts_what_is_wanted(
    wanted: dict[str, str], held: dict[str, Held], generation: int, now: float
) -> None:
    for name, action in decide(wanted, held, generation, now).items():
        if action is Action.SERVE:
            assert name in wanted
            assert name not in held or not held[name].busy
        if action is Action.UNLOAD:
            assert name not in wanted
            assert not held[name].busy
        if action is Action.CANCEL:
            assert held[name].busy
            assert not held[name].pinned
            assert not held[name].cancelled
            assert held[name].key != wanted.get(name)


@given(_WANTED, st.integers(1, 2), _NOW)
def test_nothing_is_done_when_all_is_as_wanted(wanted: dict[str, str], generation: int, now: float) -> None:
    held = {name: Held(key, READY, generation=generation) for name, key in wanted.items()}
    assert decide(wanted, held, generation, now) == {}


@given(_NODE, _NOW)
def test_a_dead_triton_serves_nothing_so_all_is_loaded_again(held: dict[str, Held], now: float) -> None:
    wanted = {name: item.key for name, item in held.items()}
    actions = decide(wanted, {n: replace(h, state=READY, busy=False, generation=1) for n, h in held.items()}, 0, now)
    assert actions == dict.fromkeys(held, Action.SERVE)


def _carry_out(node: dict[str, Held], wanted: dict[str, str], actions: dict[str, Action], generation: int) -> None:
    for name, action in actions.items():
        if action is Action.SERVE:
            node[name] = Held(wanted[name], FETCHING, busy=True, generation=generation)
        elif action is Action.UNLOAD:
            node[name] = replace(node[name], state=UNLOADING, busy=True)
        else:
            node[name] = replace(node[name], busy=False, cancelled=False)


def _finish(node: dict[str, Held], fails: bool, now: float) -> None:
    """All tasks that run come to their end: with success, or (whatever is not pinned) with failure."""
    for name, item in list(node.items()):
        if not item.busy:
            continue
        if item.state == UNLOADING and not fails:
            del node[name]
        elif fails:
            state = UNLOADING if item.state == UNLOADING else FAILED
            node[name] = replace(item, state=state, busy=False, cancelled=False, pinned=False, retry_at=now + 1)
        else:
            node[name] = replace(item, state=READY, busy=False, cancelled=False, pinned=False)


@given(_WANTED, _NODE, st.integers(1, 2), st.lists(st.booleans(), max_size=4))
def test_every_node_converges_once_things_stop_failing(
    wanted: dict[str, str], held: dict[str, Held], generation: int, failures: list[bool]
) -> None:
    node, now = dict(held), 0.0
    for fails in (*failures, *[False] * 6):
        _carry_out(node, wanted, decide(wanted, node, generation, now), generation)
        _finish(node, fails, now)
        now += 20.0
    assert {name: item.key for name, item in node.items()} == wanted
    assert all(item.state == READY and item.generation == generation for item in node.values())


@given(_NODE)
def test_a_retry_is_waited_for_only_while_one_is_due(held: dict[str, Held]) -> None:
    due = next_retry(held.values())
    waiting = [item for item in held.values() if not item.busy and item.state in (FAILED, UNLOADING)]
    assert (due is None) == (not waiting)
    if due is not None:
        assert any(item.retry_at == due for item in waiting)


def test_failed_waits_and_a_new_version_does_not() -> None:
    held = {"a": Held("v1", FAILED, retry_at=5.0)}
    assert decide({"a": "v1"}, held, 1, 4.0) == {}
    assert decide({"a": "v1"}, held, 1, 5.0) == {"a": Action.SERVE}
    assert decide({"a": "v2"}, held, 1, 4.0) == {"a": Action.SERVE}


def test_a_load_that_runs_is_waited_for() -> None:
    held = {"a": Held("v1", LOADING, busy=True, pinned=True)}
    assert decide({"a": "v2"}, held, 1, 0.0) == {}
    assert decide({}, held, 1, 0.0) == {}
    assert decide({}, {"a": Held("v1", FETCHING, busy=True)}, 1, 0.0) == {"a": Action.CANCEL}


def test_a_task_is_cancelled_once() -> None:
    held = {"a": Held("v1", FETCHING, busy=True, cancelled=True)}
    assert decide({}, held, 1, 0.0) == {}
    assert decide({"a": "v2"}, held, 1, 0.0) == {}
