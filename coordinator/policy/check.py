"""Checks of a policy that need nothing but the deployment. Each raises InvalidInputError naming the field and value."""

from __future__ import annotations

import re
from collections.abc import Sequence

from google.protobuf import duration_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.xds.balancing import NO_LIMIT
from coordinator.xds.gateway_routes import MODEL_HEADER
from coordinator.xds.policy import DEFAULT_BACK_OFF_MS, DEFAULT_RETRIES, RETRIABLE_CODES
from meshkit.errors import InvalidInputError
from meshkit.names import check_model_name

MOST_RETRIES = 5
MOST_HEDGES = 2
MOST_FALLBACKS = 3
MOST_MATCHES = 64
MOST_PRIORITIES = 64
MOST_TIMEOUT_S = 7 * 24 * 3600
MOST_BACK_OFF_MS = 10_000
MOST_EJECTION_MS = 300_000
MOST_ERRORS = 1000
_MOST_VALUE = 256
LEAST_MIRROR_PERCENT = 0.0001
"""Envoy draws in parts per million."""

_HEADER = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}")
_VALUE = re.compile(r"[!-~]([ -~]*[!-~])?")
# Envoy removes, rewrites or refuses these, the mesh reads them, or (authorization) takes them off on the way.
_HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade")
_RESERVED = {MODEL_HEADER, "authorization", "content-length", "content-type", "host", "user-agent", *_HOP_BY_HOP}
_RESERVED_PREFIXES = ("x-envoy-", "x-forwarded-")
# What an overloaded server answers: to try it again at once makes the overload worse.
_OVERLOAD = frozenset({"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})
_MOST_OVERLOAD_RETRIES = 2
_LEAST_OVERLOAD_BACK_OFF_MS = 100


def check_policy(deployment: routing_pb2.Deployment) -> None:
    """Refuses what can never be right, whatever else is deployed."""
    policy = deployment.policy
    _check_timeouts(policy)
    _check_retry(policy)
    _check_storm(policy)
    _check_headers(policy)
    _check_matches(deployment)
    _check_outlier(policy.outlier)
    _check_limits(policy)
    _check_others(deployment)
    _check_scheduling(policy)


def _check_timeouts(policy: routing_pb2.RoutePolicy) -> None:
    timeout = _at_most("policy.timeout", policy.timeout, MOST_TIMEOUT_S * 1000)
    try_timeout = _at_most("policy.try_timeout", policy.try_timeout, MOST_TIMEOUT_S * 1000)
    delay = _at_most("policy.hedge.delay", policy.hedge.delay, MOST_TIMEOUT_S * 1000)
    if timeout and try_timeout > timeout:
        raise _bad(
            f"policy.try_timeout of {try_timeout} ms is longer than policy.timeout of {timeout} ms",
            "a try cannot outlast its call: make it shorter",
        )
    if try_timeout and _under_1_ms(policy.try_timeout):
        raise _bad("policy.try_timeout is shorter than 1 ms", "leave it out for none")
    if not policy.HasField("hedge"):
        return
    if _under_1_ms(policy.hedge.delay):
        raise _bad("policy.hedge.delay is shorter than 1 ms", "about the time in which 95 of 100 requests are answered")
    if timeout and delay >= timeout:
        raise _bad(
            f"policy.hedge.delay of {delay} ms is not shorter than policy.timeout of {timeout} ms",
            "the second copy would never be sent: make it shorter",
        )
    if try_timeout:
        raise _bad(
            "policy.try_timeout and policy.hedge exclude each other", "hedge.delay takes its place: leave one out"
        )


def _check_retry(policy: routing_pb2.RoutePolicy) -> None:
    retry = policy.retry
    for code in retry.codes:
        if code not in RETRIABLE_CODES:
            raise _bad(f"policy.retry.codes: {code!r} cannot be tried again", f"one of {', '.join(RETRIABLE_CODES)}")
    _check_percent("policy.retry.budget_percent", retry.budget_percent)
    if retry.HasField("back_off"):
        _check_length("policy.retry.back_off", retry.back_off, MOST_BACK_OFF_MS)


def _check_storm(policy: routing_pb2.RoutePolicy) -> None:
    """How many requests one request may become, when servers are slow or overloaded."""
    retry = policy.retry
    retries = retry.max_retries if policy.HasField("retry") else DEFAULT_RETRIES
    if retries > MOST_RETRIES:
        raise _storm(
            f"policy.retry.max_retries of {retries} would multiply an outage by {retries + 1}",
            f"at most {MOST_RETRIES}",
        )
    if policy.HasField("hedge"):
        if not retries:
            raise _bad("policy.hedge without retries sends no second copy", "set retry.max_retries to 1 or 2")
        if retries > MOST_HEDGES:
            raise _storm(
                f"policy.hedge with {retries} retries would send a slow server's work {retries + 1} times",
                f"set retry.max_retries to at most {MOST_HEDGES}",
            )
    if policy.try_timeout.ToNanoseconds() > 0 and retries > MOST_HEDGES:
        raise _storm(
            f"policy.try_timeout with {retries} retries would run a slow server's work {retries + 1} times",
            f"set retry.max_retries to at most {MOST_HEDGES}",
        )
    overload = sorted(_OVERLOAD & set(retry.codes))
    back_off_ms = _milliseconds(retry.back_off) or DEFAULT_BACK_OFF_MS
    if overload and (retries > _MOST_OVERLOAD_RETRIES or back_off_ms < _LEAST_OVERLOAD_BACK_OFF_MS):
        raise _storm(
            f"policy.retry tries again on {' and '.join(overload)}, which overloaded servers answer, {retries} times "
            f"after {back_off_ms} ms",
            f"with these codes: at most {_MOST_OVERLOAD_RETRIES} retries, and a back_off of at least "
            f"{_LEAST_OVERLOAD_BACK_OFF_MS} ms",
        )


def _check_headers(policy: routing_pb2.RoutePolicy) -> None:
    ring, sticky = policy.balancer.ring_hash.header, policy.sticky.header
    if policy.balancer.WhichOneof("kind") == "ring_hash":
        _check_header("policy.balancer.ring_hash.header", ring)
    if policy.HasField("sticky"):
        _check_header("policy.sticky.header", sticky)
    if ring and sticky and ring != sticky:
        raise _bad(
            f"policy.sticky.header {sticky!r} and policy.balancer.ring_hash.header {ring!r} differ",
            "version and replica are found by one hash: name the same header in both",
        )
    _check_percent("policy.balancer.latency_adaptive.least_percent", policy.balancer.latency_adaptive.least_percent)


def _check_header(field: str, name: str) -> None:
    if not _HEADER.fullmatch(name):
        raise _bad(
            f"{field} {name!r} is no header's name",
            "1 to 100 of a-z, 0-9, '_', '.' and '-', the first a letter or digit",
        )
    if name.endswith("-bin") or name.startswith("grpc-"):
        raise _bad(f"{field} {name!r} is of a kind that gRPC does not route by", "use one without -bin and grpc-")
    if name in _RESERVED or name.startswith(_RESERVED_PREFIXES):
        raise _bad(f"{field} {name!r} has a meaning of its own", "use a header of yours, such as x-tenant")


def _check_matches(deployment: routing_pb2.Deployment) -> None:
    matches, versions = deployment.policy.matches, [target.version for target in deployment.targets]
    if len(matches) > MOST_MATCHES:
        raise _bad(f"policy.matches has {len(matches)} entries", f"at most {MOST_MATCHES}")
    seen: set[tuple[str, str]] = set()
    for index, match in enumerate(matches):
        field = f"policy.matches[{index}]"
        _check_header(f"{field}.header", match.header)
        if not _VALUE.fullmatch(match.value) or len(match.value) > _MOST_VALUE:
            raise _bad(
                f"{field}.value {match.value!r} is not allowed", f"1 to {_MOST_VALUE} printable ASCII characters"
            )
        if match.version not in versions:
            raise _bad(f"{field}.version {match.version!r} is not deployed", f"one of {', '.join(versions)}")
        if (match.header, match.value) in seen:
            raise _bad(f"{field} repeats {match.header} = {match.value!r}", "the first decides: remove this one")
        seen.add((match.header, match.value))


def _check_outlier(outlier: routing_pb2.OutlierEjection) -> None:
    if outlier.consecutive_errors > MOST_ERRORS:
        raise _bad(f"policy.outlier.consecutive_errors of {outlier.consecutive_errors}", f"at most {MOST_ERRORS}")
    _check_percent("policy.outlier.max_ejected_percent", outlier.max_ejected_percent)
    if outlier.HasField("base_ejection"):
        _check_length("policy.outlier.base_ejection", outlier.base_ejection, MOST_EJECTION_MS)


def _check_limits(policy: routing_pb2.RoutePolicy) -> None:
    if policy.limits.max_requests > NO_LIMIT:
        raise _bad(f"policy.limits.max_requests of {policy.limits.max_requests}", f"at most {NO_LIMIT}; 0 for no limit")


def _check_others(deployment: routing_pb2.Deployment) -> None:
    policy = deployment.policy
    if len(policy.fallbacks) > MOST_FALLBACKS:
        raise _bad(f"policy.fallbacks names {len(policy.fallbacks)} deployments", f"at most {MOST_FALLBACKS}")
    for name in policy.fallbacks:
        check_model_name(name)
    if len(set(policy.fallbacks)) < len(policy.fallbacks):
        raise _bad(f"policy.fallbacks names a deployment twice: {', '.join(policy.fallbacks)}", "once is enough")
    if deployment.name in policy.fallbacks:
        raise _bad(f"policy.fallbacks of {deployment.name!r} names itself", "name another deployment")
    if policy.HasField("mirror"):
        _check_mirror(deployment)


def _check_mirror(deployment: routing_pb2.Deployment) -> None:
    policy = deployment.policy
    if policy.mirror.version:
        _check_mirrored_version(deployment)
    elif not policy.mirror.deployment:
        raise _bad("policy.mirror names nobody", "name a deployment, or a version of this one with weight 0")
    else:
        check_model_name(policy.mirror.deployment)
    if policy.mirror.deployment == deployment.name:
        raise _bad(
            f"policy.mirror of {deployment.name!r} names itself", "name another deployment, or a version of this one"
        )
    if not LEAST_MIRROR_PERCENT <= policy.mirror.percent <= 100:  # also refuses what is no number
        raise _bad(
            f"policy.mirror.percent of {policy.mirror.percent:g} is not possible",
            f"at least {LEAST_MIRROR_PERCENT:g}, at most 100",
        )


def _check_mirrored_version(deployment: routing_pb2.Deployment) -> None:
    mirror = deployment.policy.mirror
    if mirror.deployment:
        raise _bad(
            f"policy.mirror names both deployment {mirror.deployment!r} and version {mirror.version!r}",
            "copies go to one of them: leave the other out",
        )
    weights = {target.version: target.weight for target in deployment.targets}
    if mirror.version not in weights:
        raise _bad(f"policy.mirror.version {mirror.version!r} is not deployed", f"one of {', '.join(weights)}")
    if weights[mirror.version]:
        raise _bad(
            f"policy.mirror.version {mirror.version!r} has weight {weights[mirror.version]}",
            "a version that gets copies answers nobody: give it weight 0",
        )


def _check_scheduling(policy: routing_pb2.RoutePolicy) -> None:
    wanted = policy.scheduling
    if wanted.priority_levels > MOST_PRIORITIES:
        raise _bad(f"policy.scheduling.priority_levels of {wanted.priority_levels}", f"at most {MOST_PRIORITIES}")
    if wanted.default_priority > wanted.priority_levels:
        raise _bad(
            f"policy.scheduling.default_priority {wanted.default_priority} is none of the "
            f"{wanted.priority_levels} priority_levels",
            "1 is the first, priority_levels the last",
        )
    queue_timeout = _at_most("policy.scheduling.queue_timeout", wanted.queue_timeout, MOST_TIMEOUT_S * 1000)
    if wanted.HasField("queue_timeout") and queue_timeout < 1:
        raise _bad("policy.scheduling.queue_timeout is shorter than 1 ms", "leave it out for no limit")
    timeout = _milliseconds(policy.timeout)
    if timeout and queue_timeout > timeout:
        raise _bad(
            f"policy.scheduling.queue_timeout of {queue_timeout} ms is longer than policy.timeout of {timeout} ms",
            "requests would wait for callers who are gone: make it shorter",
        )


def check_batching(policy: routing_pb2.RoutePolicy, batch_sizes: Sequence[tuple[str, int]]) -> None:
    """`batch_sizes` has (version, max_batch_size) of each target. Triton keeps queues for models that batch only."""
    if not policy.HasField("scheduling") or policy.scheduling == routing_pb2.Scheduling():
        return
    for version, size in batch_sizes:
        if size == 0:
            raise _bad(
                f"policy.scheduling: version {version} takes no batches, and Triton queues only for models that do",
                "leave scheduling out, or push the model with a batch dimension (max_batch_size > 0)",
            )


def _check_percent(field: str, percent: int) -> None:
    if percent > 100:
        raise _bad(f"{field} of {percent} is not possible", "at most 100; 0 for the default")


def _at_most(field: str, duration: duration_pb2.Duration, most_ms: int) -> int:
    """Milliseconds, rounded up; 0 when unset."""
    if duration.seconds < 0 or duration.nanos < 0:
        raise _bad(f"{field} is negative", "leave it out for none")
    if duration.seconds * 1000 > most_ms:
        raise _bad(f"{field} of {duration.seconds} s is too long", f"at most {most_ms // 1000} s, or none")
    return _milliseconds(duration)


def _check_length(field: str, duration: duration_pb2.Duration, most_ms: int) -> None:
    if _under_1_ms(duration) or _milliseconds(duration) > most_ms:
        shown = duration.ToNanoseconds() / 1e6
        raise _bad(f"{field} of {shown:g} ms is not possible", f"1 ms to {most_ms // 1000} s")


def _under_1_ms(duration: duration_pb2.Duration) -> bool:
    """Engines count in milliseconds: less is none to them."""
    return duration.ToNanoseconds() < 1_000_000


def _milliseconds(duration: duration_pb2.Duration) -> int:
    return duration.seconds * 1000 + -(-duration.nanos // 1_000_000)


def _bad(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="BAD_POLICY")


def _storm(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="RETRY_STORM")
