"""Policies in files, and the examples of the documentation."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given

from aimesh.routing.v1 import routing_pb2
from coordinator.policy.check import check_policy
from meshkit.errors import InvalidInputError
from tests.unit.policy.policies import policies
from tools.cli.policy_file import parse_policy, read_policy
from tools.cli.routing import parse_headers, parse_split, split_targets

DOCS = Path(__file__).parents[3] / "docs" / "operations" / "routing.md"
EXAMPLES = re.findall(r"```toml\n(.*?)```", DOCS.read_text(), re.DOTALL)


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_of_the_documentation_is_taken(example: str) -> None:
    targets = [routing_pb2.Target(version=version, replicas=1, weight=1) for version in ("1.0.0", "2.0.0")]
    policy = parse_policy(tomllib.loads(example), "example")
    check_policy(routing_pb2.Deployment(name="chat", targets=targets, policy=policy))


def test_the_examples_name_every_rule() -> None:
    named = {key for example in EXAMPLES for key in tomllib.loads(example)}
    assert named == {field.name for field in routing_pb2.RoutePolicy.DESCRIPTOR.fields}


@given(policies(["1.0.0"], ["other"]))
def test_what_is_shown_as_json_is_read_back(policy: routing_pb2.RoutePolicy) -> None:
    shown = json_format.MessageToDict(policy, preserving_proto_field_name=True)
    assert parse_policy(shown, "shown") == policy


def test_each_form_says_the_same(tmp_path: Path) -> None:
    texts = {"toml": 'timeout = "1.5s"', "yaml": "timeout: 1.5s", "json": '{"timeout": "1500ms"}'}
    for suffix, text in texts.items():
        path = tmp_path / f"policy.{suffix}"
        path.write_text(text)
        assert read_policy(path).timeout.ToMilliseconds() == 1500
    (tmp_path / "empty.yaml").write_text("")
    assert read_policy(tmp_path / "empty.yaml") == routing_pb2.RoutePolicy()


@pytest.mark.parametrize(
    ("policy", "said", "hint"),
    [
        ({"retries": 2}, "policy has no 'retries'", "known are: timeout, retry, "),
        ({"retry": {"max": 2}}, "policy.retry has no 'max'", "max_retries"),
        ({"retry": 2}, "policy.retry must be a table, not 2", "max_retries"),
        ({"matches": {}}, "policy.matches must be a list", ""),
        ({"matches": [{"name": "x"}]}, "policy.matches[0] has no 'name'", "header, value, version"),
        ({"timeout": 5}, "policy.timeout = 5 is no length of time", "250ms"),
        ({"balancer": {"by_capacity": {}, "least_request": {}}}, "one of by_capacity and least_request only", ""),
        ({"limits": {"max_requests": "many"}}, "max_requests", "routing.md"),
        ({"limits": {"max_requests": -1}}, "policy.limits.max_requests: Value out of range: -1", "routing.md"),
        ([], "must be a table", ""),
    ],
)
def test_what_is_wrong_is_named_with_what_is_known(policy: Any, said: str, hint: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        parse_policy(policy, "chat.toml")
    assert said in refused.value.message
    assert hint in refused.value.hint


@pytest.mark.parametrize(("name", "text"), [("a.toml", "= 1"), ("a.yaml", "a: ["), ("a.json", "{"), ("a.txt", "")])
def test_files_that_cannot_be_read_are_refused(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InvalidInputError, match=name):
        read_policy(tmp_path / name)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        read_policy(tmp_path / "missing.toml")


def test_splits_keep_replicas() -> None:
    held = [routing_pb2.Target(version="1.0.0", replicas=3, weight=100)]
    found = split_targets(held, parse_split(["1.0.0=90", "2.0.0=10"]), None)
    assert [(each.version, each.replicas, each.weight) for each in found] == [("1.0.0", 3, 90), ("2.0.0", 3, 10)]
    for wrong in (["1.0.0"], ["1.0.0=x"], ["1.0.0=1", "1.0.0=2"]):
        with pytest.raises(InvalidInputError, match="share of a version"):
            parse_split(wrong)


def test_headers_are_in_lower_case() -> None:
    assert parse_headers(["X-Tenant=a=b"]) == {"x-tenant": "a=b"}
    with pytest.raises(InvalidInputError, match="is no header"):
        parse_headers(["x-tenant"])
