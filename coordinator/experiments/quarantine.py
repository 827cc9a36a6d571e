"""Configurations that are not to be tried again: in etcd, so that every coordinator refuses them at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from aimesh.experiment.v1 import experiment_pb2
from aimesh.rollout.v1 import rollout_pb2
from coordinator import keys
from coordinator.etcd import Created, Etcd, KeyValue, Put, Unchanged
from coordinator.experiments.configuration import check_not_quarantined
from coordinator.experiments.lifecycle import QUARANTINING, last_order
from coordinator.identity.outbox import Outbox
from coordinator.mirror import Mirror
from coordinator.order import Order
from meshkit.errors import InvalidInputError, NotFoundError, PreconditionError, SupersededError

SHORTEST = 8
"""Digits of a hash that may stand for it."""
MOST_EVIDENCE = 32


@dataclass(frozen=True)
class Quarantines:
    """Writes and lifts quarantines."""

    etcd: Etcd
    mirror: Mirror
    outbox: Outbox

    async def check_spec(self, spec: rollout_pb2.RolloutSpec) -> None:
        """Raises PreconditionError (QUARANTINED) when a rollout would bring a version that is."""
        state = self.mirror.state
        for number in dict.fromkeys([spec.version, *(arm.version for arm in spec.experiment.arms)]):
            version = state.versions.get((spec.name, number))
            if version is not None:
                check_not_quarantined(state.quarantined.values(), version)

    async def put(self, experiment: experiment_pb2.Experiment, guards: Sequence[Created]) -> None:
        """Writes a configuration down with its evidence; again after a review. Raises SupersededError."""
        order = last_order(experiment, QUARANTINING)
        _, (held,) = await self.etcd.get(keys.quarantine(experiment.hash))
        known = _parsed(held)
        if known is not None and known.experiment == experiment.spec.name and not known.HasField("review"):
            return  # this was written before the last leader went
        record = experiment_pb2.Quarantine(
            hash=experiment.hash,
            model=experiment.spec.model,
            version=experiment.spec.candidate,
            content=experiment.content,
            parameters=experiment.spec.parameters,
            experiment=experiment.spec.name,
            reason=order.reason,
            evidence=experiment.comparisons[:MOST_EVIDENCE],
            by=order.by,
        )
        record.at.FromNanoseconds(order.now_ns)
        await self._write(held, record, guards)

    async def release(self, digits: str, order: Order) -> experiment_pb2.Quarantine:
        """Lifts one. Raises InvalidInputError, NotFoundError, PreconditionError when it was lifted before."""
        if not order.reason.strip():
            raise InvalidInputError("a review needs a reason", hint="--reason TEXT says why")
        config_hash = find(self.mirror.state.quarantined, digits)
        _, (held,) = await self.etcd.get(keys.quarantine(config_hash))
        record = _parsed(held)
        if record is None:
            raise _unknown(digits)
        if record.HasField("review"):
            raise PreconditionError(
                f"the quarantine {record.hash[:12]} was lifted by {record.review.by}: {record.review.reason}",
                hint="nothing is to be done",
                reason="NOT_QUARANTINED",
            )
        record.review.by, record.review.reason = order.by, order.reason
        record.review.at.FromNanoseconds(order.now_ns)
        await self._write(held, record, ())
        return record

    async def _write(self, held: KeyValue, record: experiment_pb2.Quarantine, guards: Sequence[Created]) -> None:
        value = keys.encode(record)
        changes = [Put(held.key, value), await self.outbox.event(held.key, held.value, value)]
        revision = await self.etcd.txn([*guards, Unchanged(held.key, held.mod_revision)], changes)
        if revision is None:
            raise SupersededError(f"the quarantine {record.hash[:12]} changed in the meantime", hint="try again")
        await self.mirror.reached(revision)


def find(quarantined: Mapping[str, experiment_pb2.Quarantine], digits: str) -> str:
    """The hash that the first digits stand for. Raises InvalidInputError for too few, NotFoundError."""
    if len(digits) < SHORTEST:
        raise InvalidInputError(f"hash {digits!r} is too short", hint=f"give {SHORTEST} digits at least")
    found = [each for each in quarantined if each.startswith(digits)]
    if not found:
        raise _unknown(digits)
    if len(found) > 1:
        raise InvalidInputError(f"{digits!r} stands for {len(found)} hashes", hint="give more digits")
    return found[0]


def _parsed(held: KeyValue) -> experiment_pb2.Quarantine | None:
    return keys.parse(held.value, experiment_pb2.Quarantine()) if held.value is not None else None


def _unknown(digits: str) -> NotFoundError:
    return NotFoundError(
        f"no configuration with hash {digits!r} was ever quarantined",
        hint="see: aimesh experiments quarantine",
        reason="QUARANTINE_NOT_FOUND",
    )
