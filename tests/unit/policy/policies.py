"""Generated policies: any that pass the checks."""

from __future__ import annotations

from collections.abc import Sequence

from google.protobuf import duration_pb2
from hypothesis import strategies as st

from aimesh.routing.v1 import routing_pb2
from coordinator.xds.policy import RETRIABLE_CODES


def milliseconds(count: int) -> duration_pb2.Duration:
    found = duration_pb2.Duration()
    found.FromMilliseconds(count)
    return found


_balancers = st.one_of(
    st.none(),
    st.builds(routing_pb2.Balancer, by_capacity=st.just(routing_pb2.ByCapacity())),
    st.builds(routing_pb2.Balancer, least_request=st.just(routing_pb2.LeastRequest())),
    st.builds(routing_pb2.Balancer, ring_hash=st.just(routing_pb2.RingHash(header="x-session"))),
    st.builds(routing_pb2.Balancer, latency_adaptive=st.just(routing_pb2.LatencyAdaptive(least_percent=10))),
)
_retries = st.one_of(
    st.none(),
    st.builds(
        routing_pb2.RetryPolicy,
        max_retries=st.integers(1, 2),
        codes=st.lists(st.sampled_from(RETRIABLE_CODES), unique=True),
        budget_percent=st.integers(0, 100),
        back_off=st.just(milliseconds(100)),
    ),
)


@st.composite
def policies(
    draw: st.DrawFn, versions: list[str], others: list[str], silent: Sequence[str] = ()
) -> routing_pb2.RoutePolicy:
    """Policies of a deployment with these versions, of which `silent` have no weight, among these other deployments."""
    policy = routing_pb2.RoutePolicy(balancer=draw(_balancers), retry=draw(_retries))
    for value in draw(st.lists(st.sampled_from(["acme", "umbrella corp", "100%"]), unique=True)):
        policy.matches.add(header="x-tenant", value=value, version=draw(st.sampled_from(versions)))
    if draw(st.booleans()):
        policy.timeout.CopyFrom(milliseconds(draw(st.integers(1000, 100_000))))
    if draw(st.booleans()):
        policy.sticky.header = "x-session"
    bound = draw(st.sampled_from(["", "hedge", "try_timeout"]))
    if bound == "hedge":
        policy.hedge.delay.CopyFrom(milliseconds(draw(st.integers(1, 900))))
    elif bound:
        policy.try_timeout.CopyFrom(milliseconds(draw(st.integers(1, 900))))
    if draw(st.booleans()):
        policy.outlier.consecutive_errors = draw(st.integers(0, 1000))
        policy.outlier.max_ejected_percent = draw(st.integers(0, 100))
    policy.limits.max_requests = draw(st.sampled_from([0, 1, 1000]))
    if others:
        if draw(st.booleans()):
            percent = draw(st.floats(0.0001, 100))
            policy.mirror.CopyFrom(routing_pb2.Mirror(deployment=draw(st.sampled_from(others)), percent=percent))
        policy.fallbacks.extend(draw(st.lists(st.sampled_from(others), max_size=3, unique=True)))
    shadow = draw(st.sampled_from(["", *silent]))
    if shadow:
        policy.mirror.CopyFrom(routing_pb2.Mirror(version=shadow, percent=100))
    return policy
