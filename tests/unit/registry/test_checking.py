from __future__ import annotations

import pytest

from aimesh.registry.v1 import registry_pb2
from coordinator import keys
from coordinator.api.validate import check_version_message
from coordinator.registry.checking import MOST_CHANGELOG, MOST_PROMPT, MOST_RECORD, check_record
from meshkit.errors import InvalidInputError
from meshkit.versions import version_digest

FILE = registry_pb2.ModelFile(path="a", digest="a" * 64, size=3)


def model(**fields: object) -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(**{"name": "m", "version": "1.0.0", "runtime": "python", "files": [FILE]} | fields)  # type: ignore[arg-type]


def file(path: str) -> registry_pb2.ModelFile:
    return registry_pb2.ModelFile(path=path, digest="a" * 64, size=3)


def tensors(*inputs: tuple[str, int, list[int]]) -> registry_pb2.Signature:
    found = registry_pb2.Signature()
    for name, kind, shape in inputs:
        found.inputs.add(name=name, data_type=kind, shape=shape)
    return found


def prompt(**fields: object) -> registry_pb2.ModelVersion:
    return model(**{"kind": registry_pb2.KIND_PROMPT, "runtime": ""} | fields)


def test_a_model_may_say_much_of_itself() -> None:
    provenance = registry_pb2.Provenance(source="job 7", details={"commit": "abc"}, pushed_by="somebody else")
    said = model(changelog="x" * MOST_CHANGELOG, provenance=provenance, replaces="0.9.0")
    said.migration.path = "a"
    said.migration.timeout.seconds = 60
    assert check_version_message(said).kind == registry_pb2.KIND_MODEL
    assert version_digest(check_version_message(said)) == version_digest(said)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"changelog": "x" * 1_000_000}, "the changelog has 1000000 bytes"),
        ({"changelog": "ä" * MOST_CHANGELOG}, "the changelog has 32768 bytes"),
        ({"provenance": registry_pb2.Provenance(source="x" * 1025)}, "provenance.source has 1025"),
        ({"provenance": registry_pb2.Provenance(details={str(n): "" for n in range(33)})}, "33 details"),
        ({"provenance": registry_pb2.Provenance(details={"": "x"})}, "a key of 0 characters"),
        ({"provenance": registry_pb2.Provenance(details={"k" * 64: "x"})}, "a key of 64 characters"),
        ({"provenance": registry_pb2.Provenance(details={"k": "x" * 1025})}, "1025 bytes"),
        ({"replaces": "older"}, "version 'older' is not allowed"),
        ({"requirements": registry_pb2.Requirements(triton_version=">=2")}, "triton_version '>=2'"),
        ({"requirements": registry_pb2.Requirements(runtime_version="new")}, "runtime_version 'new'"),
        ({"migration": registry_pb2.Migration(path="b")}, "migration.path 'b' is none of the files"),
        ({"migration": registry_pb2.Migration()}, "migration.path ''"),
        ({"kind": 7}, "kind 7 is unknown"),
        ({"signature": tensors(("x", 99, [1]))}, "input 'x' has the unknown data_type 99"),
        ({"signature": tensors(("x", 0, [1]))}, "input 'x' has the unknown data_type 0"),
        ({"signature": tensors(("x", 11, [-2]))}, r"input 'x' has the shape \[-2\]"),
        ({"signature": tensors(("x", 11, [1]), ("x", 11, [1]))}, "input 'x' is there twice"),
        ({"signature": tensors(("", 11, [1]))}, "input '' has no name"),
        ({"signature": registry_pb2.Signature(max_batch_size=2**31)}, "max_batch_size 2147483648 is too large"),
        ({"files": [FILE, file("a/b")]}, "'a' is a file and a directory"),
        ({"files": [file("a\x1b[2J")]}, "is not allowed"),
        ({"files": [file("a" * 256)]}, "is not allowed"),
        ({"files": [file("a/" * 600 + "b")]}, "is not allowed"),
    ],
)
def test_what_is_too_much_or_cannot_be_is_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidInputError, match=said):
        check_version_message(model(**fields))


def test_what_etcd_would_not_take_is_refused_before() -> None:
    large = model()
    large.identification.warnings.append("x" * MOST_RECORD)
    check_record(model(), keys.encode(model()))
    with pytest.raises(InvalidInputError, match=r"m:1\.0\.0 with its 1 files"):
        check_record(large, keys.encode(large))


@pytest.mark.parametrize("seconds", [0, -1, 3601])
def test_a_migration_has_a_possible_time_limit(seconds: int) -> None:
    version = model(migration=registry_pb2.Migration(path="a"))
    version.migration.timeout.seconds = seconds
    with pytest.raises(InvalidInputError, match=f"migration.timeout of {seconds} s"):
        check_version_message(version)


def test_a_prompt_is_one_text_and_nothing_runs_it() -> None:
    assert check_version_message(prompt()).kind == registry_pb2.KIND_PROMPT
    other = registry_pb2.ModelFile(path="b", digest="b" * 64)
    for fields, said in (
        ({"files": [FILE, other]}, "has 2 files"),
        ({"files": []}, "has no files"),
        ({"files": [registry_pb2.ModelFile(path="a", digest="a" * 64, size=MOST_PROMPT + 1)]}, "262145 bytes"),
        ({"runtime": "python"}, "has runtime"),
        ({"parameters": {"a": "b"}}, "has parameters"),
        ({"self_test": "{}"}, "has self_test"),
        ({"requirements": registry_pb2.Requirements(memory_bytes=1)}, "has requirements"),
        ({"signature": registry_pb2.Signature(decoupled=True)}, "has signature"),
    ):
        with pytest.raises(InvalidInputError, match=said):
            check_version_message(prompt(**fields))
