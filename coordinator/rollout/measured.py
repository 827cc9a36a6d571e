"""What is measured of a rollout at this moment: only the leader knows, and anybody may be asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc
import grpc.aio
import structlog

from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from coordinator.election import Election
from coordinator.mirror import Mirror
from coordinator.peers import Peers
from meshkit.errors import PreconditionError

log = structlog.get_logger()

DEADLINE_S = 1.0
"""How long the leader may take; without its answer a rollout is shown without measurements."""
PASSED_ON = "x-aimesh-passed-on"
"""Metadata of a call that a coordinator passes on, which goes no further."""


class Measured:
    """Call it for the comparisons of a deployment's rollout."""

    def __init__(
        self,
        mirror: Mirror,
        election: Election,
        peers: Peers,
        own: Callable[[str], Sequence[rollout_pb2.Comparison]],
    ) -> None:
        """`own` gives what this coordinator measures when it leads."""
        self._mirror = mirror
        self._election = election
        self._peers = peers
        self._own = own

    async def __call__(self, name: str, *, passed_on: bool = False) -> Sequence[rollout_pb2.Comparison]:
        """Empty when nobody measures, or the leader does not answer. `passed_on` calls go no further."""
        if self._election.term or passed_on:
            return self._own(name)
        leader = self._mirror.state.coordinators.get(self._mirror.state.leader)
        if leader is None or leader.address not in self._peers.addresses():
            return ()
        try:
            stub = rollout_pb2_grpc.RolloutServiceStub(self._peers.channel(leader.address))
            answer: rollout_pb2.GetRolloutResponse = await stub.GetRollout(
                rollout_pb2.GetRolloutRequest(name=name), timeout=DEADLINE_S, metadata=((PASSED_ON, "1"),)
            )
        except grpc.aio.AioRpcError as error:
            log.info("rollout.not_told", coordinator=leader.address, code=error.code().name)
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                self._peers.drop(leader.address)
            return ()
        except PreconditionError as error:  # own certificate cannot be read
            log.warning("rollout.not_asked", coordinator=leader.address, reason=error.message)
            return ()
        return list(answer.comparisons)
