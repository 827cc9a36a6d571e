"""States of a mesh for tests."""

from __future__ import annotations

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2

GIB = 1 << 30


def node(name: str, *, model_state: str = "READY", message: str = "") -> cluster_pb2.NodeStatus:
    """A ready node that runs m:1.0.0."""
    model = membership_pb2.ModelStatus(
        name="m", version="1.0.0", state=membership_pb2.ModelState.Value(f"MODEL_STATE_{model_state}"), message=message
    )
    triton = membership_pb2.Triton(state=membership_pb2.TRITON_STATE_READY, grpc_port=8510, pid=77)
    gpu = membership_pb2.Gpu(index=0, uuid="GPU-1", name="H200", memory_bytes=141 * GIB)
    return cluster_pb2.NodeStatus(
        node=membership_pb2.Node(
            id=name,
            epoch=7,
            state=membership_pb2.NODE_STATE_READY,
            address="127.0.0.1",
            pid=66,
            labels={"zone": "a"},
            capacity=membership_pb2.Capacity(cpu_cores=1.5, memory_bytes=2**60, gpus=[gpu]),
            report=membership_pb2.ModelReport(triton=triton, models=[model]),
        ),
        load=membership_pb2.Load(cpu_utilization=0.25, memory_used_bytes=GIB),
    )


def status(
    *nodes: cluster_pb2.NodeStatus, ready: int = 1, wanted: int = 1, limit: str = "", frozen: str = ""
) -> cluster_pb2.Status:
    """A mesh with these nodes, all of which were given m:1.0.0."""
    rejections = [routing_pb2.Rejection(node="node-9", limit=limit, message=f"{limit}: 1 of 2")] if limit else []
    target = routing_pb2.TargetStatus(
        version="1.0.0", wanted=wanted, ready=ready, nodes=[entry.node.id for entry in nodes], rejections=rejections
    )
    deployment = routing_pb2.Deployment(name="m", targets=[routing_pb2.Target(version="1.0.0", replicas=wanted)])
    return cluster_pb2.Status(
        revision=2**53,
        coordinators=[cluster_pb2.Coordinator(id="coordinator-1", address="127.0.0.1:8503", leader=True, pid=55)],
        etcd_endpoints=["127.0.0.1:8501"],
        nodes=nodes,
        deployments=[routing_pb2.DeploymentStatus(deployment=deployment, targets=[target])],
        xds_clients=[
            cluster_pb2.XdsClient(
                id="gateway", subscriptions=[cluster_pb2.XdsSubscription(type="rds", acked_version="5")]
            )
        ],
        frozen=frozen,
    )
