from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError
from meshkit.names import check_model_name, check_version, version_key

# In the order that semver.org 2.0.0 gives in item 11, and a few more.
ORDERED = [
    "0.9.9",
    "1.0.0-1",
    "1.0.0-2",
    "1.0.0-10",
    "1.0.0-alpha",
    "1.0.0-alpha.1",
    "1.0.0-alpha.beta",
    "1.0.0-beta",
    "1.0.0-beta.2",
    "1.0.0-beta.11",
    "1.0.0-rc.1",
    "1.0.0",
    "1.0.1",
    "1.2.0",
    "1.10.0",
    "2.0.0-0",
    "2.0.0",
]


@pytest.mark.parametrize("name", ["a", "smollm2", "all-minilm_l6.v2", "0", "a" * 63])
def test_names_that_are_allowed(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", ".a", "A", "a/b", "a b", "a" * 64, "ä", "a\n", "a\x00"])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(InvalidInputError, match="is not allowed"):
        check_model_name(name)


@pytest.mark.parametrize("version", ORDERED)
def test_versions_that_are_allowed(version: str) -> None:
    assert check_version(version) == version


@pytest.mark.parametrize(
    "version",
    ["", "1", "1.0", "v1.0.0", "01.0.0", "1.0.0-", "1.0.0-01", "1.0.0-a..b", "1.0.0+b", "1.0.0\n", "\u0661.0.0"],
)
def test_versions_that_are_not(version: str) -> None:
    with pytest.raises(InvalidInputError, match="is not allowed"):
        check_version(version)


def test_a_version_has_at_most_64_characters() -> None:
    with pytest.raises(InvalidInputError, match="at most 64"):
        check_version("1.0.0-" + "a" * 59)


def test_versions_sort_by_precedence() -> None:
    assert sorted(set(ORDERED), key=version_key) == ORDERED


_numbers = st.integers(0, 1000)
_identifiers = st.one_of(_numbers.map(str), st.from_regex(r"[a-z-][0-9a-z-]{0,3}", fullmatch=True))
_versions = st.builds(
    lambda core, pre: ".".join(map(str, core)) + ("-" + ".".join(pre) if pre else ""),
    st.tuples(_numbers, _numbers, _numbers),
    st.lists(_identifiers, max_size=3),
)


@given(_versions, _versions)
def test_only_equal_versions_have_equal_keys(one: str, other: str) -> None:
    assert (version_key(one) == version_key(other)) == (one == other)


@given(_versions)
def test_a_pre_release_comes_before_its_release(version: str) -> None:
    release = version.partition("-")[0]
    assert version_key(version) <= version_key(release)
