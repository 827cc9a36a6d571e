"""While a rollout of a deployment is not over, nobody else changes the deployment."""

from __future__ import annotations

from aimesh.rollout.v1 import rollout_pb2
from coordinator import keys
from coordinator.etcd import Etcd, Unchanged
from coordinator.rollout.check import check_no_other


async def unclaimed(etcd: Etcd, name: str) -> Unchanged:
    """The guard on there being no rollout, for a transaction that changes the deployment.

    Raises PreconditionError while there is one, UnavailableError when etcd does not answer.
    """
    _, (held,) = await etcd.get(keys.rollout(name))
    check_no_other(keys.parse(held.value, rollout_pb2.Rollout()) if held.value is not None else None)
    return Unchanged(held.key, held.mod_revision)
