"""Jobs of trials: submitted once, followed through the loss of coordinators, cancelled. Errors are the catalogue's."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import grpc.aio

from aimesh.training.v1 import training_pb2
from meshkit.errors import NotFoundError, PreconditionError, SupersededError, UnavailableError
from meshkit.grpc_errors import from_call
from tools.cli import train_client
from tools.cli.target import Mesh

PATIENCE_S = 600.0
"""So long may all coordinators be away."""
UNSEEN_S = 5.0
"""So long may a coordinator not know a job that another has recorded."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
View = training_pb2.WatchJobResponse


class Patience:
    """How long an answer is waited for: pauses with jitter that grow, until the time is up."""

    def __init__(self) -> None:
        self._failed_at: float | None = None
        self._pause_s = _FIRST_PAUSE_S

    def renew(self) -> None:
        """An answer came."""
        self._failed_at, self._pause_s = None, _FIRST_PAUSE_S

    async def wait(self, error: Exception, most_s: float) -> None:
        """Pauses before the next try. Raises the error when the time is up."""
        now = asyncio.get_running_loop().time()
        self._failed_at = self._failed_at or now
        if now - self._failed_at > most_s:
            raise error
        await asyncio.sleep(random.uniform(0.1, self._pause_s))  # noqa: S311 - jitter, no secret
        self._pause_s = min(_LONGEST_PAUSE_S, self._pause_s * 2)


async def submit(mesh: Mesh, spec: training_pb2.JobSpec, request_id: str) -> training_pb2.Job:
    """Records a job, or finds the one that this request made before. Raises what the service answers."""
    patience = Patience()
    while True:
        try:
            return await train_client.submit(mesh, spec, request_id)
        except grpc.aio.AioRpcError as error:
            found = from_call(error)
            if not isinstance(found, UnavailableError):
                raise found from None
            await patience.wait(found, PATIENCE_S)
        except UnavailableError as error:
            await patience.wait(error, PATIENCE_S)


async def watched(mesh: Mesh, job: str) -> AsyncIterator[View]:
    """The job as it goes on, until it has ended. Raises NotFoundError when there is no such job."""
    patience = Patience()
    while True:
        try:
            async for view in train_client.follow(mesh, job):
                patience.renew()
                yield view
        except grpc.aio.AioRpcError as error:
            found = UnavailableError("stopped") if error.code() in train_client.GONE else from_call(error)
            if not isinstance(found, UnavailableError | NotFoundError):
                raise found from None
            await patience.wait(found, UNSEEN_S if isinstance(found, NotFoundError) else PATIENCE_S)
        except UnavailableError as error:
            await patience.wait(error, PATIENCE_S)
        else:
            return


async def cancel(mesh: Mesh, job: str, reason: str) -> bool:
    """Ends a job; whether it was told so or had ended, rather than that nobody could say so now."""
    try:
        await train_client.steer(mesh, "cancel", job, reason)
    except grpc.aio.AioRpcError as error:
        found = from_call(error)
        if isinstance(found, PreconditionError | NotFoundError):
            return True  # it has ended by itself
        if not isinstance(found, UnavailableError | SupersededError):
            raise found from None
        return False
    except UnavailableError:
        return False
    return True
