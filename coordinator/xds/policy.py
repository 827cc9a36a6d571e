"""How a deployment's requests travel: the part of a route that gRPC clients and the gateway share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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
_GRPC_RETRY_ON = "unavailable,connect-failure,refused-stream,reset"
# A REST request that resets its connection is not tried elsewhere: it may have killed that Triton (see REST_FILTER).
_HTTP_RETRY_ON = "connect-failure,refused-stream,retriable-status-codes"
_PREVIOUS_HOSTS = "envoy.retry_host_predicates.previous_hosts"
_PREVIOUS_HOSTS_TYPE = "type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"


def route_action(
    policy: routing_pb2.RoutePolicy,
    versions: Sequence[VersionWeight],
    cluster_of: Callable[[str], str],
    *,
    http: bool = False,
    slack_ms: int = 0,
) -> route_components_pb2.RouteAction:
    """The action that carries requests to `versions` (at least one); `cluster_of` names a version's cluster.

    `slack_ms` milliseconds are added to the policy's timeout, if it has one.
    """
    action = route_components_pb2.RouteAction(
        # Explicit, because Envoy's default would end every call after 15 s. gRPC clients do not read it.
        timeout=duration_pb2.Duration(),
        idle_timeout=duration_pb2.Duration(),
        retry_policy=retry_policy(policy, http=http),
    )
    if policy.HasField("timeout") and policy.timeout.ToNanoseconds() > 0:
        # The one bound that both engines put on a whole call, streams and retries included.
        action.max_stream_duration.max_stream_duration.FromMilliseconds(_timeout_ms(policy) + slack_ms)
    if len(versions) == 1:
        action.cluster = cluster_of(versions[0][0])
        return action
    for version, weight in _countable(versions):
        action.weighted_clusters.clusters.add(name=cluster_of(version), weight=wrappers_pb2.UInt32Value(value=weight))
    return action


def _timeout_ms(policy: routing_pb2.RoutePolicy) -> int:
    """At least 1: 0 would be no bound at all."""
    return min(max(policy.timeout.ToMilliseconds(), 1), _MOST_TIMEOUT_MS)


def _countable(versions: Sequence[VersionWeight]) -> Sequence[VersionWeight]:
    """The same shares in weights that both engines can sum up."""
    total = sum(weight for _, weight in versions)
    if total <= _MOST_WEIGHT:
        return versions
    return [(version, max(weight * _MOST_WEIGHT // total, 1)) for version, weight in versions]


def retry_policy(policy: routing_pb2.RoutePolicy, *, http: bool = False) -> route_components_pb2.RetryPolicy | None:
    """When to try again; None when the deployment turned retries off."""
    retries = policy.retry.max_retries if policy.HasField("retry") else DEFAULT_RETRIES
    if retries == 0:
        return None
    retry = route_components_pb2.RetryPolicy(
        retry_on=_HTTP_RETRY_ON if http else _GRPC_RETRY_ON,
        num_retries=wrappers_pb2.UInt32Value(value=retries),
        retry_back_off=route_components_pb2.RetryPolicy.RetryBackOff(
            base_interval=duration_pb2.Duration(nanos=25_000_000), max_interval=duration_pb2.Duration(nanos=250_000_000)
        ),
        retriable_status_codes=[503] if http else [],
        # Envoy: another host than the one that just failed; gRPC's round_robin goes on to the next anyway.
        host_selection_retry_max_attempts=5,
    )
    predicate = retry.retry_host_predicate.add(name=_PREVIOUS_HOSTS)
    predicate.typed_config.type_url = _PREVIOUS_HOSTS_TYPE
    return retry
