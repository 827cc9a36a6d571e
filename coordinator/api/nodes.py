"""What operators do to nodes: drain, undrain, forget. Each is one transaction on what was read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from aimesh.cluster.v1 import cluster_pb2
from aimesh.membership.v1 import membership_pb2
from coordinator import keys
from coordinator.etcd import Created, Delete, Etcd, Put, Unchanged
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from meshkit.errors import NotFoundError, PreconditionError, SupersededError


@dataclass(frozen=True)
class NodeOrders:
    """Writes an operator's orders; the leader's controller carries them out."""

    etcd: Etcd
    mirror: Mirror
    outbox: Outbox

    async def drain(self, node_id: str) -> None:
        """Has the node emptied. Raises NotFoundError."""
        _, (member, held) = await self.etcd.get(keys.member(node_id), keys.drain(node_id))
        if member.value is None:
            raise _unknown(node_id)
        if held.value is None:
            order = keys.encode(cluster_pb2.DrainNodeRequest(node_id=node_id))
            event = await self.outbox.event(held.key, None, order)
            # The member's every change must not matter here; that it is forgotten at this moment does.
            guards: list[Unchanged | Created] = [Unchanged(held.key, 0), Created(member.key, member.create_revision)]
            await self._commit(guards, [Put(held.key, order), event], node_id)

    async def undrain(self, node_id: str) -> None:
        """Lets the node take replicas again. Raises NotFoundError."""
        _, (member, held) = await self.etcd.get(keys.member(node_id), keys.drain(node_id))
        if held.value is None and member.value is None:
            raise _unknown(node_id)
        if held.value is not None:
            event = await self.outbox.event(held.key, held.value, None)
            await self._commit([Unchanged(held.key, held.mod_revision)], [Delete(held.key), event], node_id)

    async def forget(self, node_id: str) -> None:
        """Declares a silent node dead for good. Raises NotFoundError, PreconditionError while its agent speaks."""
        _, (member, node) = await self.etcd.get(keys.member(node_id), keys.node(node_id))
        if member.value is None:
            raise _unknown(node_id)
        held = keys.parse(node.value or b"{}", membership_pb2.Node())
        if node.value is not None and held.state != membership_pb2.NODE_STATE_SUSPECT:
            raise PreconditionError(
                f"node {node_id} is in session with coordinator {held.coordinator_id}",
                hint=f"stop its agent first; to take its models away: aimesh drain {node_id}",
                reason="NODE_IN_SESSION",
            )
        guards = [Unchanged(member.key, member.mod_revision), Unchanged(node.key, node.mod_revision)]
        event = await self.outbox.event(member.key, member.value, None)
        changes: list[Put | Delete] = [Delete(member.key), Delete(node.key), Delete(keys.drain(node_id)), event]
        await self._commit(guards, changes, node_id)

    async def _commit(
        self, guards: Sequence[Unchanged | Created], changes: Sequence[Put | Delete], node_id: str
    ) -> None:
        revision = await self.etcd.txn(guards, changes)
        if revision is None:
            raise SupersededError(f"node {node_id} changed in the meantime", hint="try again")
        await self.mirror.reached(revision)


def _unknown(node_id: str) -> NotFoundError:
    return NotFoundError(f"there is no node {node_id!r}", hint="see: aimesh status", reason="NODE_NOT_FOUND")
