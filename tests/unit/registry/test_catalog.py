from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.registry import catalog
from meshkit.errors import ExhaustedError, InvalidInputError, NotFoundError, PreconditionError
from meshkit.names import check_version

Model = registry_pb2.Model
Target = routing_pb2.Target
aliases = st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True)


@given(aliases)
def test_no_alias_can_be_taken_for_a_version(alias: str) -> None:
    assert catalog.check_alias(alias) == alias
    with pytest.raises(InvalidInputError):
        check_version(alias)


@pytest.mark.parametrize("alias", ["", "Champion", "1.0.0", "1", "v1.0", "a b", "@a", "a/b", "a" * 64, "ä"])
def test_aliases_that_are_not_allowed(alias: str) -> None:
    with pytest.raises(InvalidInputError, match="alias"):
        catalog.check_alias(alias)


@given(st.dictionaries(aliases, st.sampled_from(["1.0.0", "2.0.0"]), max_size=8), aliases)
def test_an_alias_set_and_removed_leaves_the_others(held: dict[str, str], alias: str) -> None:
    model = Model(name="m", aliases=held)
    there = catalog.with_alias(model, alias, "3.0.0")
    assert dict(there.aliases) == {**held, alias: "3.0.0"}
    assert dict(catalog.without_alias(there, alias).aliases) == {k: v for k, v in held.items() if k != alias}
    assert dict(model.aliases) == held, "what was given is not changed"


def test_an_alias_that_there_is_not_is_named_with_those_that_there_are() -> None:
    with pytest.raises(NotFoundError, match="no alias 'champion'") as caught:
        catalog.without_alias(Model(name="m", aliases={"next": "1.0.0"}), "champion")
    assert "it has next" in caught.value.hint


def test_tags_are_set_removed_and_limited() -> None:
    model = catalog.with_tags(Model(name="m"), "1.0.0", {"stage": "new", "by": ""}, [])
    model = catalog.with_tags(model, "2.0.0", {"a": "b"}, [])
    model = catalog.with_tags(model, "1.0.0", {"stage": "tested"}, ["by"])
    assert dict(model.tags["1.0.0"].values) == {"stage": "tested"}
    with pytest.raises(NotFoundError, match="has no tag 'by'"):
        catalog.with_tags(model, "1.0.0", {}, ["by"])
    assert set(catalog.with_tags(model, "1.0.0", {}, ["stage"]).tags) == {"2.0.0"}
    with pytest.raises(ExhaustedError, match="would have 33 tags"):
        catalog.with_tags(Model(name="m"), "1.0.0", {f"t{number}": "" for number in range(33)}, [])
    with pytest.raises(ExhaustedError, match="65 aliases"):
        catalog.with_alias(Model(name="m", aliases={f"a{n}": "1.0.0" for n in range(64)}), "b", "1.0.0")
    big = Model(name="m")
    for number in range(2000):
        big.tags[f"1.0.{number}"].values["t"] = "x" * 256
    with pytest.raises(ExhaustedError, match="bytes"):
        catalog.with_tags(big, "2.0.0", {"a": "b"}, [])


@pytest.mark.parametrize(
    "tags", [{"": "x"}, {"a" * 64: "x"}, {"a b": "x"}, {"a-": ""}, {"a": "x" * 257}, {"a": "x\ny"}]
)
def test_tags_that_are_not_allowed(tags: dict[str, str]) -> None:
    with pytest.raises(InvalidInputError, match="tag"):
        catalog.check_tags(tags)


def following(*targets: Target, match: str = "") -> routing_pb2.Deployment:
    deployment = routing_pb2.Deployment(name="m", targets=targets)
    if match:
        deployment.policy.matches.add(header="x", value="y", version=match)
    return deployment


def test_targets_follow_their_alias_and_what_names_their_version_goes_with_them() -> None:
    model = Model(name="m", aliases={"champion": "1.1.0", "next": "2.0.0"})
    before = following(
        Target(version="1.0.0", alias="champion", replicas=2), Target(version="0.9.0", replicas=1), match="1.0.0"
    )
    after = catalog.resolved(before, model)
    assert [(t.version, t.alias, t.replicas) for t in after.targets] == [("1.1.0", "champion", 2), ("0.9.0", "", 1)]
    assert after.policy.matches[0].version == "1.1.0"
    assert before.targets[0].version == "1.0.0"
    assert catalog.resolved(following(Target(alias="next")), model).targets[0].version == "2.0.0"
    nothing = following(Target(alias="next"))
    nothing.policy.matches.add(header="x", value="y")
    assert catalog.resolved(nothing, model).policy.matches[0].version == "", "a match without a version stays wrong"


def test_two_targets_never_come_to_the_same_version() -> None:
    model = Model(name="m", aliases={"a": "1.0.0", "b": "1.0.0"})
    for targets in ([Target(alias="a"), Target(alias="b")], [Target(alias="a"), Target(version="1.0.0")]):
        with pytest.raises(PreconditionError, match=r"come to the same version 1\.0\.0"):
            catalog.resolved(following(*targets), model)
    with pytest.raises(NotFoundError, match="no alias 'c'"):
        catalog.resolved(following(Target(alias="c")), model)


@pytest.mark.parametrize("state", rollout_pb2.RolloutState.values())
def test_a_rollout_that_is_not_over_holds_what_it_may_go_back_to(state: rollout_pb2.RolloutState.ValueType) -> None:
    rollout = rollout_pb2.Rollout(state=state, before=following(Target(version="1.0.0", alias="champion")))
    rollout.steps.add().targets.add(version="2.0.0")
    over = state in (
        rollout_pb2.ROLLOUT_STATE_UNSPECIFIED,
        rollout_pb2.ROLLOUT_STATE_SUCCEEDED,
        rollout_pb2.ROLLOUT_STATE_ROLLED_BACK,
    )
    assert catalog.rollout_holds(rollout, "champion") is not over
    assert not catalog.rollout_holds(rollout, "next")
    assert [catalog.rollout_needs(rollout, each) for each in ("1.0.0", "2.0.0")] == [not over] * 2
    assert not catalog.rollout_needs(rollout, "3.0.0")
