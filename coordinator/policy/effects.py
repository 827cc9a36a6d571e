"""What each engine does with each rule of a policy: nothing that one of them cannot do goes unsaid."""

from __future__ import annotations

from collections.abc import Iterator

from google.protobuf import duration_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.xds.balancing import (
    BUDGET_FLOOR,
    DEFAULT_EJECTED_PERCENT,
    DEFAULT_ERRORS,
    FAILING_PERCENT,
)
from coordinator.xds.policy import CLIENT_SLACK_MS, DEFAULT_RETRIES, MOST_CLIENT_RETRIES

CLIENT_BUFFER = "256 KiB (channel option grpc.per_rpc_retry_buffer_size)"
"""What gRPC keeps of a request to send it again. Its default, and where to change it."""

Effect = routing_pb2.RuleEffect


def effects(deployment: routing_pb2.Deployment) -> list[Effect]:
    """One entry for each rule that is set, and for those that hold by default."""
    policy = deployment.policy
    return [
        _balancer(policy.balancer),
        *_split(deployment),
        *_retry(policy),
        *_times(policy),
        *_protection(policy),
        *_others(policy),
        *_queue(policy.scheduling),
    ]


def partial(deployment: routing_pb2.Deployment) -> list[Effect]:
    """The rules that one of the engines does not carry out in full."""
    return [effect for effect in effects(deployment) if effect.partial]


def show_duration(duration: duration_pb2.Duration) -> str:
    """250 ms, 2 s, 1.5 s."""
    ms = duration.ToNanoseconds() / 1e6
    return f"{ms:g} ms" if ms < 1000 else f"{ms / 1000:g} s"


def _both(rule: str, what: str) -> Effect:
    return Effect(rule=rule, gateway=what, programs=what)


def _gateway_only(rule: str, gateway: str, programs: str) -> Effect:
    return Effect(rule=rule, gateway=gateway, programs=programs, partial=True)


def _balancer(balancer: routing_pb2.Balancer) -> Effect:
    kind = balancer.WhichOneof("kind")
    if kind == "by_capacity":
        return _both("balancer.by_capacity", "replicas are drawn in proportion to what their nodes have")
    if kind == "least_request":
        return _gateway_only(
            "balancer.least_request",
            "of two replicas drawn at random, the one with fewer requests in flight",
            "gRPC has no such balancer over xDS: replicas are drawn with equal shares",
        )
    if kind == "ring_hash":
        header = balancer.ring_hash.header
        return _both(f"balancer.ring_hash = {header}", f"the same replica for the same {header}; any without it")
    if kind == "latency_adaptive":
        return _both("balancer.latency_adaptive", "replicas are drawn by weights that follow their measured latency")
    return _both("balancer", "replicas are drawn with equal shares (default)")


def _split(deployment: routing_pb2.Deployment) -> Iterator[Effect]:
    policy = deployment.policy
    weighted = [target for target in deployment.targets if target.weight]
    if len(deployment.targets) > 1:
        shares = ", ".join(f"{target.version} = {target.weight}" for target in weighted)
        yield _both(
            f"weights {shares}", "each request is drawn by weight; a version without a ready replica takes none"
        )
    for match in policy.matches:
        rule = f"match {match.header} = {match.value}"
        yield _both(rule, f"goes to {match.version}; by weight while no replica of it is ready")
    if policy.HasField("sticky"):
        header = policy.sticky.header
        yield _gateway_only(
            f"sticky = {header}",
            f"the same version for the same {header}, until the weights change",
            "gRPC draws a version anew for each request; send such callers through the gateway, or match on a header",
        )


def _retry(policy: routing_pb2.RoutePolicy) -> Iterator[Effect]:
    retry = policy.retry
    retries = retry.max_retries if policy.HasField("retry") else DEFAULT_RETRIES
    codes = ", ".join(retry.codes) or "UNAVAILABLE"
    default = "" if policy.HasField("retry") else " (default)"
    if not retries:
        yield _both("retry.max_retries = 0", "nothing is tried again")
        return
    rest = f"more tries on {codes}, before the first answer{default}"
    yield Effect(
        rule=f"retry.max_retries = {retries}",
        gateway=f"up to {retries} {rest}",
        programs=f"up to {min(retries, MOST_CLIENT_RETRIES)} {rest}; none of a request larger than {CLIENT_BUFFER}",
        partial=retries > MOST_CLIENT_RETRIES,
    )
    if percent := retry.budget_percent:
        yield Effect(
            rule=f"retry.budget_percent = {percent}",
            gateway=f"at most {percent} % of the requests in flight to a version are retries, or {BUDGET_FLOOR}",
            programs="gRPC has no budget over xDS: each request may use all its tries",
            partial=True,
        )


def _times(policy: routing_pb2.RoutePolicy) -> Iterator[Effect]:
    if policy.timeout.ToNanoseconds() > 0:
        shown = show_duration(policy.timeout)
        yield Effect(
            rule=f"timeout = {shown}",
            gateway=f"a call ends after {shown}, retries and streams included",
            programs=f"the same after {CLIENT_SLACK_MS // 1000} s more, because gRPC ends such calls early",
        )
    if policy.try_timeout.ToNanoseconds() > 0:
        yield _gateway_only(
            f"try_timeout = {show_duration(policy.try_timeout)}",
            "a try without a first answer by then is given up; gRPC calls are tried again if UNAVAILABLE is, REST "
            "ends; calls that stream their answers have no bound on a try",
            "gRPC has no bound on one try: only the timeout and the caller's deadline end it",
        )
    if policy.HasField("hedge"):
        yield _gateway_only(
            f"hedge.delay = {show_duration(policy.hedge.delay)}",
            "a copy goes to another replica each time that long passes without an answer; the first answer wins; calls "
            "that stream their answers are not copied",
            "gRPC has no hedging over xDS: one copy at a time",
        )


def _protection(policy: routing_pb2.RoutePolicy) -> Iterator[Effect]:
    if policy.HasField("outlier"):
        errors = policy.outlier.consecutive_errors or DEFAULT_ERRORS
        share = f"at most {policy.outlier.max_ejected_percent or DEFAULT_EJECTED_PERCENT} % of them"
        yield _gateway_only(
            f"outlier.consecutive_errors = {errors}",
            f"{errors} errors in a row leave a replica out for a while, {share}",
            f"gRPC cannot count errors in a row: of {errors} requests or more in 10 s, {FAILING_PERCENT} % must fail, "
            f"{share}",
        )
    if policy.limits.max_requests:
        count = policy.limits.max_requests
        yield _gateway_only(
            f"limits.max_requests = {count}",
            f"beyond {count} in flight to a version, each gateway ends calls with RESOURCE_EXHAUSTED",
            f"beyond {count} in flight to a version, each program's calls end with UNAVAILABLE (circuit breaker drop): "
            "gRPC has no other code for it",
        )


def _others(policy: routing_pb2.RoutePolicy) -> Iterator[Effect]:
    if policy.HasField("mirror"):
        other, percent = policy.mirror.deployment or f"version {policy.mirror.version}", policy.mirror.percent
        yield _gateway_only(
            f"mirror = {other}",
            f"{percent:g} % of the requests are copied to {other}; its answers are dropped",
            "gRPC copies nothing",
        )
    if policy.fallbacks:
        order = ", then ".join(policy.fallbacks)
        yield _gateway_only(
            f"fallbacks = {', '.join(policy.fallbacks)}",
            f"while no replica is ready, {order} answers; the answer's model_name says which",
            "calls end with UNAVAILABLE: gRPC cannot write the fallback's name into a request; ask for it by name",
        )


def _queue(scheduling: routing_pb2.Scheduling) -> Iterator[Effect]:
    if scheduling.priority_levels:
        yield _both(
            f"scheduling.priority_levels = {scheduling.priority_levels}",
            "Triton runs requests with a lower number of the parameter 'priority' first",
        )
    if scheduling.max_queue_size:
        yield _both(
            f"scheduling.max_queue_size = {scheduling.max_queue_size}",
            "beyond it Triton refuses a request at once, with UNAVAILABLE",
        )
    if scheduling.queue_timeout.ToNanoseconds() > 0:
        yield _both(
            f"scheduling.queue_timeout = {show_duration(scheduling.queue_timeout)}",
            "Triton drops a request that waited longer, unrun",
        )
