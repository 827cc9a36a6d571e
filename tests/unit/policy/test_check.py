"""What is refused, and that the refusal names the field, the value and what to do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from coordinator.api.validate import check_deployment
from coordinator.policy.check import check_batching
from coordinator.policy.references import check_references, check_signatures, reached
from meshkit.errors import InvalidInputError
from tests.unit.policy.policies import policies
from tools.cli.policy_file import parse_policy


def deployment(name: str = "chat", **policy: Any) -> routing_pb2.Deployment:
    targets = [routing_pb2.Target(version=version, replicas=1, weight=1) for version in ("1.0.0", "2.0.0")]
    return routing_pb2.Deployment(name=name, targets=targets, policy=parse_policy(policy, "test"))


def match(**changes: str) -> dict[str, str]:
    return {"header": "x-tenant", "value": "acme", "version": "2.0.0", **changes}


REFUSED = [
    ({"timeout": "1s", "try_timeout": "2s"}, "try_timeout of 2000 ms is longer than policy.timeout of 1000 ms"),
    ({"timeout": "1s", "hedge": {"delay": "1s"}}, "hedge.delay of 1000 ms is not shorter than"),
    ({"hedge": {}}, "hedge.delay is shorter than 1 ms"),
    ({"hedge": {"delay": "0.9ms"}}, "hedge.delay is shorter than 1 ms"),
    ({"try_timeout": "0.9ms"}, "try_timeout is shorter than 1 ms"),
    ({"retry": {"max_retries": 3}, "try_timeout": "1s"}, "would run a slow server's work 4 times"),
    ({"hedge": {"delay": "50ms"}, "try_timeout": "1s"}, "exclude each other"),
    ({"retry": {"codes": ["NOT_FOUND"]}}, "'NOT_FOUND' cannot be tried again"),
    ({"retry": {"max_retries": 6}}, "max_retries of 6 would multiply an outage by 7"),
    ({"retry": {"max_retries": 3}, "hedge": {"delay": "50ms"}}, "would send a slow server's work 4 times"),
    ({"retry": {"max_retries": 0}, "hedge": {"delay": "50ms"}}, "sends no second copy"),
    ({"retry": {"max_retries": 1, "codes": ["RESOURCE_EXHAUSTED"]}}, "which overloaded servers answer"),
    ({"retry": {"max_retries": 1, "budget_percent": 101}}, "budget_percent of 101"),
    ({"retry": {"max_retries": 1, "back_off": "1m"}}, "back_off of 60000 ms"),
    ({"retry": {"max_retries": 1, "back_off": "0.9ms"}}, "back_off of 0.9 ms"),
    ({"matches": [match(version="3.0.0")]}, "'3.0.0' is not deployed"),
    ({"matches": [match(), match(version="1.0.0")]}, "repeats x-tenant = 'acme'"),
    ({"matches": [match(header="X-Tenant")]}, "is no header's name"),
    ({"matches": [match(header="x-key-bin")]}, "gRPC does not route by"),
    ({"matches": [match(header="x-aimesh-model")]}, "a meaning of its own"),
    ({"matches": [match(header="x-envoy-retry-on")]}, "a meaning of its own"),
    ({"sticky": {"header": "authorization"}}, "a meaning of its own"),
    ({"balancer": {"ring_hash": {"header": "x-forwarded-for"}}}, "a meaning of its own"),
    ({"matches": [match(value="")]}, "value '' is not allowed"),
    ({"matches": [match(value="ü")]}, "value 'ü' is not allowed"),
    ({"balancer": {"ring_hash": {}}}, "ring_hash.header '' is no header's name"),
    ({"balancer": {"ring_hash": {"header": "x-a"}}, "sticky": {"header": "x-b"}}, "differ"),
    ({"balancer": {"latency_adaptive": {"least_percent": 101}}}, "least_percent of 101"),
    ({"outlier": {"consecutive_errors": 1001}}, "consecutive_errors of 1001"),
    ({"outlier": {"base_ejection": "1h"}}, "base_ejection of 3.6e+06 ms"),
    ({"outlier": {"base_ejection": "0.5ms"}}, "base_ejection of 0.5 ms"),
    ({"limits": {"max_requests": 2**31}}, "max_requests of 2147483648"),
    ({"mirror": {"deployment": "chat", "percent": 1}}, "names itself"),
    ({"mirror": {"deployment": "other", "percent": 0}}, "percent of 0 is not possible"),
    ({"mirror": {"deployment": "other", "percent": 0.00001}}, "percent of 1e-05 is not possible"),
    ({"mirror": {"deployment": "other", "percent": 100.1}}, "percent of 100.1 is not possible"),
    ({"mirror": {"deployment": "other", "percent": "NaN"}}, "percent of nan is not possible"),
    ({"mirror": {"percent": 1}}, "policy.mirror names nobody"),
    (
        {"mirror": {"deployment": "other", "version": "2.0.0", "percent": 1}},
        "names both deployment 'other' and",
    ),
    ({"mirror": {"version": "3.0.0", "percent": 1}}, "policy.mirror.version '3.0.0' is not deployed"),
    ({"mirror": {"version": "1.0.0", "percent": 1}}, "policy.mirror.version '1.0.0' has weight 1"),
    ({"fallbacks": ["chat"]}, "names itself"),
    ({"fallbacks": ["a", "a"]}, "names a deployment twice"),
    ({"fallbacks": ["a", "b", "c", "d"]}, "names 4 deployments"),
    ({"fallbacks": ["No Such"]}, "model name 'No Such' is not allowed"),
    ({"scheduling": {"default_priority": 2, "priority_levels": 1}}, "default_priority 2 is none of the 1"),
    ({"scheduling": {"priority_levels": 65}}, "priority_levels of 65"),
    ({"scheduling": {"queue_timeout": "0s"}}, "queue_timeout is shorter than 1 ms"),
    ({"timeout": "1s", "scheduling": {"queue_timeout": "2s"}}, "queue_timeout of 2000 ms is longer"),
]


@pytest.mark.parametrize(("policy", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_can_never_be_right_is_refused_with_the_reason(policy: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidInputError) as refused:
        check_deployment(deployment(**policy))
    assert said in refused.value.message
    assert refused.value.hint


def test_weights_that_sum_to_zero_are_refused() -> None:
    wanted = deployment()
    for target in wanted.targets:
        target.weight = 0
    with pytest.raises(InvalidInputError, match="sum to zero"):
        check_deployment(wanted)


def test_a_version_without_weight_may_get_copies() -> None:
    wanted = deployment(mirror={"version": "2.0.0", "percent": 100})
    wanted.targets[1].weight = 0
    check_deployment(wanted)
    check_references(wanted, {})
    check_signatures({}, wanted, {})
    assert reached(wanted, {}) == set()


@settings(max_examples=100)
@given(policies(["1.0.0", "2.0.0"], ["a", "b", "c"]))
def test_what_is_right_passes(policy: routing_pb2.RoutePolicy) -> None:
    wanted = deployment()
    wanted.policy.CopyFrom(policy)
    check_deployment(wanted)


def test_fallbacks_and_mirrors_must_be_deployed() -> None:
    for policy in ({"fallbacks": ["gone"]}, {"mirror": {"deployment": "gone", "percent": 1}}):
        with pytest.raises(InvalidInputError, match="'gone' is not deployed") as refused:
            check_references(deployment(**policy), {"a": deployment("a"), "chat": deployment()})
        assert "deployed are: a;" in refused.value.hint


def test_fallbacks_that_lead_in_a_circle_are_refused_with_the_circle() -> None:
    others = {"a": deployment("a", fallbacks=["b"]), "b": deployment("b", fallbacks=["chat"])}
    with pytest.raises(InvalidInputError, match="chat -> a -> b -> chat"):
        check_references(deployment(fallbacks=["a"]), others)
    check_references(deployment(fallbacks=["b"]), {"b": deployment("b")})


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from("abcdef"), st.lists(st.sampled_from("abcdef"), max_size=3, unique=True)))
def test_a_circle_is_found_if_and_only_if_there_is_one(edges: dict[str, list[str]]) -> None:
    others = {name: deployment(name, fallbacks=[to for to in edges.get(name, []) if to != name]) for name in "abcdef"}
    wanted = others.pop("a")
    if "a" in reached(wanted, others):
        with pytest.raises(InvalidInputError, match=r"^policy\.fallbacks leads in a circle: a -> .*a\."):
            check_references(wanted, others)
    else:
        check_references(wanted, others)


def test_others_must_take_the_same_tensors() -> None:
    def version(**kinds: int) -> registry_pb2.ModelVersion:
        found = registry_pb2.ModelVersion()
        for name, kind in kinds.items():
            found.signature.inputs.add(name=name, data_type=kind)
        return found

    recorded = {("chat", "1.0.0"): version(text=13), ("a", "1.0.0"): version(text=13), ("b", "1.0.0"): version(ids=4)}
    others = {name: deployment(name) for name in "ab"}
    check_signatures(recorded, deployment(fallbacks=["a"]), others)
    with pytest.raises(InvalidInputError, match="does not take input 'text' as it is, needs input 'ids'"):
        check_signatures(recorded, deployment(mirror={"deployment": "b", "percent": 1}), others)


def test_scheduling_needs_a_model_that_batches() -> None:
    policy = parse_policy({"scheduling": {"priority_levels": 2}}, "test")
    check_batching(policy, [("1.0.0", 8)])
    with pytest.raises(InvalidInputError, match=r"version 2\.0\.0 takes no batches"):
        check_batching(policy, [("1.0.0", 8), ("2.0.0", 0)])
