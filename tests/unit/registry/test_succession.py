from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from coordinator.registry.succession import check_succession, replaced
from meshkit.errors import ConflictError, InvalidInputError, NotFoundError, PreconditionError
from meshkit.names import version_key

NARROW, WIDE = (1, 3), (-1, 3)


def version(number: str, shape: tuple[int, ...] = WIDE, replaces: str = "") -> registry_pb2.ModelVersion:
    tensor = registry_pb2.TensorSpec(name="x", data_type=registry_pb2.DATA_TYPE_FP32, shape=shape)
    signature = registry_pb2.Signature(inputs=[tensor])
    return registry_pb2.ModelVersion(name="m", version=number, signature=signature, replaces=replaces)


def test_a_break_needs_a_higher_major_version() -> None:
    before = [version("1.0.0"), version("1.2.0")]
    check_succession(version("1.2.1"), before)
    check_succession(version("2.0.0", NARROW), before)
    with pytest.raises(
        PreconditionError, match=r"m:1\.3\.0 breaks callers of 1\.2\.0: input 'x' has the shape"
    ) as caught:
        check_succession(version("1.3.0", NARROW), before)
    assert caught.value.reason == "SIGNATURE_BREAKS"
    assert "2.0.0" in caught.value.hint


def test_it_is_held_against_what_it_says_it_replaces() -> None:
    before = [version("1.0.0", NARROW), version("1.2.0"), version("2.0.0")]
    check_succession(version("1.3.0", NARROW, replaces="1.0.0"), before)
    check_succession(version("2.1.0", NARROW, replaces="1.2.0"), before)
    with pytest.raises(PreconditionError, match="breaks callers of 2"):
        check_succession(version("2.1.0", NARROW, replaces="2.0.0"), before)


@pytest.mark.parametrize("replaces", ["1.0.0", "1.0.1", "2.0.0"])
def test_a_version_replaces_a_lower_one(replaces: str) -> None:
    with pytest.raises(InvalidInputError, match=f"m:1.0.0 cannot replace {replaces}"):
        check_succession(version("1.0.0", replaces=replaces), [version("1.0.1"), version("2.0.0")])


def test_what_is_replaced_exists() -> None:
    with pytest.raises(NotFoundError, match=r"replaces '0\.9\.0', which does not exist") as caught:
        check_succession(version("1.0.0", replaces="0.9.0"), [version("0.8.0"), version("0.10.0")])
    assert "0.8.0, 0.10.0" in caught.value.hint


def test_pre_releases_promise_nothing() -> None:
    check_succession(version("1.0.0", NARROW), [version("1.0.0-rc.1")])
    check_succession(version("1.1.0", NARROW), [version("1.0.0", NARROW), version("1.1.0-rc.1")])
    with pytest.raises(PreconditionError):
        check_succession(version("1.0.0", NARROW, replaces="1.0.0-rc.1"), [version("1.0.0-rc.1")])


def test_models_and_prompts_share_their_names() -> None:
    prompt = registry_pb2.ModelVersion(name="m", version="2.0.0", kind=registry_pb2.KIND_PROMPT)
    with pytest.raises(ConflictError, match=r"m is a model, so 2\.0\.0 cannot be a prompt"):
        check_succession(prompt, [version("1.0.0")])
    with pytest.raises(ConflictError, match="m is a prompt"):
        check_succession(version("3.0.0"), [prompt])


numbers = st.builds("{}.{}.{}".format, *[st.integers(0, 3)] * 3)


@given(numbers, st.sets(numbers, max_size=8))
def test_the_one_replaced_is_the_newest_lower_of_the_same_major(own: str, others: set[str]) -> None:
    found = replaced(version(own), [version(number) for number in others])
    lower = [each for each in others if each[0] == own[0] and version_key(each) < version_key(own)]
    assert (found.version if found else None) == (max(lower, key=version_key) if lower else None)
