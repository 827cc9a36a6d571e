"""Refuses calls that a coordinator cannot answer because it has not read etcd yet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from coordinator.mirror import Mirror
from meshkit.errors import UnavailableError
from meshkit.interceptors import Around, rewrap

if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]

OPEN = frozenset(
    f"/aimesh.{method}"
    for method in (
        "cluster.v1.ClusterService/GetStatus",
        "cluster.v1.ClusterService/WatchStatus",
        "cluster.v1.ClusterService/ListLoads",
        "artifacts.v1.ArtifactsService/DownloadBlob",
        "artifacts.v1.ArtifactsService/StatBlob",
    )
)
"""Methods of ours that say something true without a state."""


class Gate(Around):
    """Closed until the mirror is loaded. Health, reflection and xDS, which waits by itself, pass."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror

    def wrap(self, handler: Handler, method: str) -> Handler:
        """The handler, or one that refuses. An empty state would answer that nothing exists."""
        if self._mirror.loaded or not method.startswith("/aimesh.") or method in OPEN:
            return handler
        return rewrap(handler, lambda _: self._refuse, lambda _: self._refuse)

    async def _refuse(self, request: Any, context: Any) -> Any:
        raise UnavailableError(
            f"this coordinator has no state yet: {self._mirror.frozen}",
            hint="check that etcd runs at coordinator.etcd.endpoints; it goes on by itself when etcd answers",
            reason="ETCD_UNREACHABLE",
        )
