"""How a deployment's requests travel, as a route's action; gRPC programs are not told what they could not do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from envoy.config.route.v3 import route_components_pb2
from google.protobuf import duration_pb2, wrappers_pb2

from aimesh.routing.v1 import routing_pb2
from coordinator.xds.readiness import VersionWeight

DEFAULT_RETRIES = 2
CLIENT_SLACK_MS = 2_000
"""gRPC's C core ends a call 1 to 2 s before a timeout that its configuration sets (grpc/grpc issues 34547 and 40633,
both open): 300 ms would end every call at once. Its clients get that much more; the gateway keeps to the timeout."""

_MOST_TIMEOUT_MS = 365 * 24 * 3600 * 1000
"""As good as none, and within what both engines can count."""
_MOST_WEIGHT = 1 << 31
"""Both engines refuse a route whose weights sum to 2^32 or more."""

# gRPC's own client heeds "unavailable" and skips the rest; its transport gives UNAVAILABLE for refused connections,
# refused streams and resets alike. Envoy sees those below gRPC, where there is no status yet, and needs their names.
_UNREACHABLE = ("connect-failure", "refused-stream", "reset")
# A REST request that resets its connection is not tried elsewhere: it may have killed that Triton (see REST_FILTER).
_HTTP_UNREACHABLE = ("connect-failure", "refused-stream")
_HTTP_OF = {"CANCELLED": 499, "DEADLINE_EXCEEDED": 504, "INTERNAL": 500, "RESOURCE_EXHAUSTED": 429, "UNAVAILABLE": 503}
RETRIABLE_CODES = tuple(_HTTP_OF)
"""gRPC codes that both engines can try again on."""
DEFAULT_BACK_OFF_MS = 25
MOST_CLIENT_RETRIES = 4
"""gRPC makes five tries of a call at most, whatever it is told."""
_MOST_BACK_OFF = 10
_OTHER_HOST_DRAWS = 200
"""How often Envoy draws a host for a retry until it is none of those that failed. With less, retries keep falling on a
dead replica that has most of the weight: of two with shares of 16 to 1, half the requests were lost at 5 draws."""
_PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
_PREVIOUS_HOSTS_TYPE = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"


@dataclass(frozen=True)
class Engine:
    """Whose route it is."""

    gateway: bool
    """Envoy; otherwise a gRPC program."""
    http: bool = False
    """It is a route for REST."""
    streams: bool = False
    """It is a route for calls that answer little by little: no bound on a try, no second copy of work that is long."""


PROGRAMS, GATEWAY, GATEWAY_REST = Engine(gateway=False), Engine(gateway=True), Engine(gateway=True, http=True)


def bounds_tries(policy: routing_pb2.RoutePolicy) -> bool:
    """Whether a try is given up, or copied, when its first answer is late."""
    return policy.HasField("hedge") or policy.try_timeout.ToNanoseconds() > 0


def route_action(
    policy: routing_pb2.RoutePolicy, versions: Sequence[VersionWeight], cluster_of: Callable[[str], str], engine: Engine
) -> route_components_pb2.RouteAction:
    """The action that carries requests to `versions` (at least one); `cluster_of` names a version's cluster."""
    action = route_components_pb2.RouteAction(
        # Explicit, because Envoy's default would end every call after 15 s. gRPC clients do not read it.
        timeout=duration_pb2.Duration(),
        idle_timeout=duration_pb2.Duration(),
        retry_policy=retry_policy(policy, engine),
    )
    if policy.HasField("timeout") and policy.timeout.ToNanoseconds() > 0:
        # The one bound that both engines put on a whole call, streams and retries included.
        slack_ms = 0 if engine.gateway else CLIENT_SLACK_MS
        action.max_stream_duration.max_stream_duration.FromMilliseconds(_timeout_ms(policy) + slack_ms)
    if engine.gateway and not engine.streams and policy.HasField("hedge"):
        action.hedge_policy.hedge_on_per_try_timeout = True
    sticky = policy.sticky.header if engine.gateway else ""
    _hash_on(action, {policy.balancer.ring_hash.header, sticky})
    if len(versions) == 1:
        action.cluster = cluster_of(versions[0][0])
        return action
    for version, weight in _countable(versions):
        action.weighted_clusters.clusters.add(name=cluster_of(version), weight=wrappers_pb2.UInt32Value(value=weight))
    if sticky:
        action.weighted_clusters.use_hash_policy.value = True
    return action


def _hash_on(action: route_components_pb2.RouteAction, headers: set[str]) -> None:
    """Both a version of a split and a replica of a ring are found by this hash; without the header it is random."""
    for header in sorted(headers - {""}):
        action.hash_policy.add().header.header_name = header


def _timeout_ms(policy: routing_pb2.RoutePolicy) -> int:
    """At least 1: 0 would be no bound at all."""
    return min(max(policy.timeout.ToMilliseconds(), 1), _MOST_TIMEOUT_MS)


def _countable(versions: Sequence[VersionWeight]) -> Sequence[VersionWeight]:
    """The same shares in weights that both engines can sum up."""
    total = sum(weight for _, weight in versions)
    if total <= _MOST_WEIGHT:
        return versions
    return [(version, max(weight * _MOST_WEIGHT // total, 1)) for version, weight in versions]


def retry_policy(policy: routing_pb2.RoutePolicy, engine: Engine) -> route_components_pb2.RetryPolicy | None:
    """When to try again; None when the deployment turned retries off."""
    retries = policy.retry.max_retries if policy.HasField("retry") else DEFAULT_RETRIES
    if retries == 0:
        return None
    if not engine.gateway:
        retries = min(retries, MOST_CLIENT_RETRIES)
    # A code that only a newer coordinator knows must not end the compiling on this one.
    codes = [code for code in dict.fromkeys(policy.retry.codes) if code in _HTTP_OF] or ["UNAVAILABLE"]
    retry = route_components_pb2.RetryPolicy(
        retry_on=",".join(_retry_on(codes, engine)),
        num_retries=wrappers_pb2.UInt32Value(value=retries),
        retriable_status_codes=[_HTTP_OF[code] for code in codes] if engine.http else [],
        # Envoy: another host than the one that just failed; gRPC's round_robin goes on to the next anyway.
        host_selection_retry_max_attempts=_OTHER_HOST_DRAWS,
    )
    back_off_ms = policy.retry.back_off.ToMilliseconds() or DEFAULT_BACK_OFF_MS
    retry.retry_back_off.base_interval.FromMilliseconds(back_off_ms)
    retry.retry_back_off.max_interval.FromMilliseconds(back_off_ms * _MOST_BACK_OFF)
    predicate = retry.retry_host_predicate.add(name=_PREVIOUS_HOSTS)
    predicate.typed_config.type_url = _PREVIOUS_HOSTS_TYPE
    if engine.gateway and not engine.streams and bounds_tries(policy):
        retry.per_try_timeout.CopyFrom(policy.hedge.delay if policy.HasField("hedge") else policy.try_timeout)
    return retry


def _retry_on(codes: Sequence[str], engine: Engine) -> list[str]:
    unreachable = (_HTTP_UNREACHABLE if engine.http else _UNREACHABLE) if "UNAVAILABLE" in codes else ()
    if engine.http:
        return [*unreachable, "retriable-status-codes"]
    return [*(code.lower().replace("_", "-") for code in codes), *unreachable]
