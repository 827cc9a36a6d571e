from __future__ import annotations

from dataclasses import replace

import pytest

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from coordinator import keys
from coordinator.measuring import merged, news, orphans
from coordinator.placement import place
from coordinator.registry.trust import MOST_KEYS, check_signatures, check_trust, forgiven, with_signature
from coordinator.roster import GIB
from coordinator.state import State
from meshkit.errors import InvalidInputError, PreconditionError
from meshkit.signing import key_id, sign
from meshkit.versions import version_digest
from tests.unit.coordinator.test_placement import carried_out, deployment, node, state_of, version
from tests.unit.meshkit.test_signing import KEY, OTHER, TRUST
from tests.unit.meshkit.test_signing import version as pushed

M = ("m", "1.0.0")


def reporting(name: str, memory: int, gpu: int = 0, key: tuple[str, str] = M) -> membership_pb2.Node:
    found = node(name, gpus=(1,))
    found.report.models.add(
        name=key[0],
        version=key[1],
        state=membership_pb2.MODEL_STATE_READY,
        measured_memory_bytes=memory,
        measured_gpu_memory_bytes=gpu,
    )
    return found


def measured(state: State, **versions: int) -> State:
    """With so many GiB measured of version 1.0.0 of each name."""
    found = {(name, "1.0.0"): registry_pb2.Measured(memory_bytes=size * GIB) for name, size in versions.items()}
    return replace(state, measured=found)


def test_the_largest_is_kept_and_small_differences_are_not_written() -> None:
    nodes = [
        reporting("a", 100, gpu=7),
        reporting("b", 120),
        reporting("c", 0),
        reporting("d", 9, key=("gone", "1.0.0")),
    ]
    state = state_of(nodes, [version("m")], [])
    found = news(state, nodes)
    assert set(found) == {M}
    assert (found[M].memory_bytes, found[M].gpu_memory_bytes, found[M].node_id) == (120, 7, "b")
    held = registry_pb2.Measured(memory_bytes=110, gpu_memory_bytes=7)
    assert news(replace(state, measured={M: held}), nodes) == {}, "no more than a tenth larger"
    held.memory_bytes = 109
    again = merged(held, news(replace(state, measured={M: held}), nodes)[M])
    assert (again.memory_bytes, again.gpu_memory_bytes) == (120, 7)
    assert merged(registry_pb2.Measured(memory_bytes=500), found[M]).memory_bytes == 500
    assert orphans(replace(state, measured={M: held, ("gone", "1.0.0"): held})) == [("gone", "1.0.0")]


def test_no_more_is_kept_than_the_node_has_that_says_it() -> None:
    liar = reporting("a", 1 << 60, gpu=1 << 60)
    found = news(state_of([liar], [version("m")], []), [liar])[M]
    assert (found.memory_bytes, found.gpu_memory_bytes) == (liar.capacity.memory_bytes, GIB)


def test_placement_goes_by_what_was_measured() -> None:
    state = state_of([node("a", memory=2)], [version("m", memory=4)], [deployment("m", 1)])
    assert place(state).assignments == {}
    assert place(measured(state, m=1)).assignments == {"a": frozenset({M})}
    assert place(measured(state_of([node("a", memory=2)], [version("m")], [deployment("m", 1)]), m=3)).assignments == {}


def test_what_runs_is_not_taken_away_for_being_measured_larger() -> None:
    state = state_of([node("a", memory=2)], [version("m"), version("n")], [deployment("m", 1), deployment("n", 1)])
    running = carried_out(state, place(state))
    assert len(running.assignments["a"]) == 2
    larger = measured(running, m=2, n=2)
    assert place(larger).assignments == running.assignments
    bystander = replace(larger, deployments={**larger.deployments, "o": deployment("o", 1)})
    bystander = replace(bystander, versions={**bystander.versions, ("o", "1.0.0"): version("o")})
    assert place(bystander).assignments == running.assignments
    assert "0.00 GiB are free" in place(bystander).rejections[("o", "1.0.0")][0].message
    assert place(measured(running, m=3, n=1)).assignments == {"a": frozenset({("n", "1.0.0")})}, "more than there is"


def test_gpu_memory_too() -> None:
    state = state_of([node("a", gpus=(4,))], [version("m", gpu=8)], [deployment("m", 1)])
    assert place(state).assignments == {}
    found = registry_pb2.Measured(memory_bytes=1, gpu_memory_bytes=2 * GIB)
    assert place(replace(state, measured={M: found})).assignments == {"a": frozenset({M})}


def test_trust_that_cannot_be_is_refused() -> None:
    release = TRUST.keys[0]
    for wrong in (
        registry_pb2.Trust(signed_only=True),
        registry_pb2.Trust(keys=[release, release]),
        registry_pb2.Trust(keys=[registry_pb2.TrustedKey(name="", public_key=release.public_key)]),
        registry_pb2.Trust(keys=[registry_pb2.TrustedKey(name="short", public_key=b"x")]),
        registry_pb2.Trust(
            keys=[registry_pb2.TrustedKey(name=f"k{i}", public_key=bytes(32)) for i in range(MOST_KEYS + 1)]
        ),
    ):
        with pytest.raises(InvalidInputError):
            check_trust(wrong)
    check_trust(TRUST)
    check_trust(registry_pb2.Trust())


def test_signatures_are_recorded_when_somebody_can_tell_whose_they_are() -> None:
    made = pushed()
    made.digest = version_digest(made)
    check_signatures(with_signature(with_signature(made, sign(made, KEY)), sign(made, KEY)), TRUST)
    with pytest.raises(PreconditionError, match="not trusted"):
        check_signatures(with_signature(made, sign(made, OTHER)), TRUST)
    other = pushed(changelog="x", self_test="y")
    with pytest.raises(InvalidInputError, match="of key release is not of"):
        check_signatures(with_signature(made, sign(other, KEY)), TRUST)


def test_failures_for_want_of_a_signature_are_forgiven_when_it_counts() -> None:
    signed, unsigned = pushed(), version("n")
    signed.signatures.append(sign(signed, KEY))
    state = State(
        versions={("m", "1.0.0"): signed, ("n", "1.0.0"): unsigned},
        failures={(node, name, "1.0.0"): membership_pb2.LoadFailure() for node in "ab" for name in "mn"},
        trust=registry_pb2.Trust(signed_only=True),
    )
    assert forgiven(state, TRUST) == [keys.failure("a", "m", "1.0.0"), keys.failure("b", "m", "1.0.0")]
    assert len(forgiven(state, registry_pb2.Trust())) == 4
    assert forgiven(replace(state, trust=TRUST), TRUST) == []
    assert key_id(TRUST.keys[0].public_key) == signed.signatures[0].key_id
