"""What a policy says about a cluster: how a replica is chosen, which are left out, how much is too much."""

from __future__ import annotations

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2, outlier_detection_pb2
from envoy.config.core.v3 import extension_pb2
from envoy.extensions.load_balancing_policies.least_request.v3 import least_request_pb2
from envoy.extensions.load_balancing_policies.round_robin.v3 import round_robin_pb2
from envoy.extensions.load_balancing_policies.wrr_locality.v3 import wrr_locality_pb2
from google.protobuf import wrappers_pb2
from google.protobuf.message import Message

from aimesh.routing.v1 import routing_pb2
from coordinator.xds.snapshot import packed_any

NO_LIMIT = 1 << 30
"""Both engines stop at 1024 concurrent requests by default, Envoy also at 3 concurrent retries. Where the policy says
nothing, nothing is meant to be a limit: Triton's own queue decides."""
BUDGET_FLOOR = 64
"""So many retries may be in flight whatever the budget: when a node dies, all its requests are tried again at once."""
DEFAULT_ERRORS = 5
DEFAULT_EJECTED_PERCENT = 50
FAILING_PERCENT = 85
"""gRPC leaves out a replica of which this share of the requests fails; it cannot count errors in a row."""
_DEFAULT_EJECTION_MS = 10_000
_RING_SIZE = 4096
"""The largest that gRPC makes. By default it is 1024, where one of 100 replicas would get 1.8 times its share."""
_NEARLY_NONE_PERCENT = 1


def balance(cluster: cluster_pb2.Cluster, balancer: routing_pb2.Balancer) -> None:
    """Sets how the cluster chooses a replica, in a form that both engines take.

    Each replica is a locality of its own, so what works on localities (round robin by weight) is told apart from what
    works on all replicas at once (least request, ring hash).
    """
    kind = balancer.WhichOneof("kind")
    if kind == "ring_hash":
        cluster.lb_policy = cluster_pb2.Cluster.RING_HASH
        cluster.ring_hash_lb_config.hash_function = cluster_pb2.Cluster.RingHashLbConfig.XX_HASH
        cluster.ring_hash_lb_config.minimum_ring_size.value = _RING_SIZE
    elif kind == "least_request":
        _prefer_least_request(cluster)
    else:
        cluster.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
        cluster.common_lb_config.locality_weighted_lb_config.SetInParent()


def limit(cluster: cluster_pb2.Cluster, policy: routing_pb2.RoutePolicy) -> None:
    """Sets the most requests and retries in flight."""
    threshold = _threshold(policy.limits.max_requests or NO_LIMIT)
    if policy.retry.budget_percent:
        threshold.retry_budget.budget_percent.value = policy.retry.budget_percent
        threshold.retry_budget.min_retry_concurrency.value = BUDGET_FLOOR
    else:
        # A node that hangs holds requests that are all tried elsewhere at once when it dies: none may be refused that.
        threshold.max_retries.value = NO_LIMIT
    cluster.circuit_breakers.thresholds.append(threshold)


def unlimited(cluster: cluster_pb2.Cluster) -> None:
    """Lifts the engines' own limits."""
    threshold = _threshold(NO_LIMIT)
    threshold.max_retries.value = NO_LIMIT
    cluster.circuit_breakers.thresholds.append(threshold)


def eject(cluster: cluster_pb2.Cluster, policy: routing_pb2.RoutePolicy) -> None:
    """Sets which replicas are left out for a while: after errors in a row (Envoy), or by their share (gRPC, A50)."""
    if not policy.HasField("outlier"):
        return
    wanted = policy.outlier
    errors = wrappers_pb2.UInt32Value(value=wanted.consecutive_errors or DEFAULT_ERRORS)
    zero, all_of_them = wrappers_pb2.UInt32Value(value=0), wrappers_pb2.UInt32Value(value=100)
    detection = outlier_detection_pb2.OutlierDetection(
        consecutive_5xx=errors,
        enforcing_consecutive_5xx=all_of_them,
        enforcing_consecutive_gateway_failure=zero,
        enforcing_success_rate=zero,
        # Two replicas are enough to tell a bad one; both engines want five of them by default.
        failure_percentage_minimum_hosts=wrappers_pb2.UInt32Value(value=2),
        failure_percentage_request_volume=errors,
        failure_percentage_threshold=wrappers_pb2.UInt32Value(value=FAILING_PERCENT),
        enforcing_failure_percentage=all_of_them,
        max_ejection_percent=wrappers_pb2.UInt32Value(value=wanted.max_ejected_percent or DEFAULT_EJECTED_PERCENT),
    )
    detection.interval.seconds = 10
    detection.max_ejection_time.seconds = 300
    detection.base_ejection_time.FromMilliseconds(wanted.base_ejection.ToMilliseconds() or _DEFAULT_EJECTION_MS)
    cluster.outlier_detection.CopyFrom(detection)
    # By default Envoy sends requests to all replicas again, failing ones included, when fewer than half are left.
    cluster.common_lb_config.healthy_panic_threshold.value = _NEARLY_NONE_PERCENT


def _threshold(requests: int) -> circuit_breaker_pb2.CircuitBreakers.Thresholds:
    none = wrappers_pb2.UInt32Value(value=NO_LIMIT)
    return circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=none, max_pending_requests=none, max_requests=wrappers_pb2.UInt32Value(value=requests)
    )


def _prefer_least_request(cluster: cluster_pb2.Cluster) -> None:
    """Each engine takes the first policy of the list that it knows (gRFC A52); gRPC knows no least request."""
    by_turns = wrr_locality_pb2.WrrLocality()
    _append(by_turns.endpoint_picking_policy, "round_robin", round_robin_pb2.RoundRobin())
    _append(cluster.load_balancing_policy, "least_request", least_request_pb2.LeastRequest())
    _append(cluster.load_balancing_policy, "wrr_locality", by_turns)


def _append(policies: cluster_pb2.LoadBalancingPolicy, name: str, config: Message) -> None:
    extension = extension_pb2.TypedExtensionConfig(
        name=f"envoy.load_balancing_policies.{name}", typed_config=packed_any(config)
    )
    policies.policies.add(typed_extension_config=extension)
