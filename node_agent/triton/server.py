"""What the rest of the agent sees of Triton, whoever started it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog

from aimesh.membership.v1 import membership_pb2
from node_agent.settings import AgentSettings
from node_agent.triton.client import TritonClient

log = structlog.get_logger()

STARTING = membership_pb2.TRITON_STATE_STARTING
READY = membership_pb2.TRITON_STATE_READY
CRASH_LOOP = membership_pb2.TRITON_STATE_CRASH_LOOP
STOPPING = membership_pb2.TRITON_STATE_STOPPING


@dataclass(frozen=True)
class TritonStatus:
    """Triton at one moment."""

    state: membership_pb2.TritonState.ValueType = STARTING
    generation: int = 0
    """Rises each time a Triton becomes ready: what was loaded in an earlier generation is loaded no more."""
    pid: int = 0
    version: str = ""
    message: str = ""
    silent: bool = False
    """It runs and has not answered for some seconds; what it had loaded may answer again."""

    @property
    def ready(self) -> bool:
        """Whether it takes models and answers."""
        return self.state == READY

    @property
    def holds(self) -> int:
        """The generation of what is loaded at this moment; 0 for nothing."""
        return self.generation if self.ready or self.silent else 0


class InferenceServer:
    """A Triton, managed or external. `run` keeps `status` true until `stop` is called; `client` calls it."""

    def __init__(self, settings: AgentSettings, data_dir: Path, address: str) -> None:
        self.settings = settings
        self.data_dir = data_dir
        self.status = TritonStatus()
        self.client = TritonClient(address, settings.tls)
        self.on_change: Callable[[], None] = lambda: None
        """Called after each change of `status`."""
        self.choose_models: Callable[[], Awaitable[Collection[str]]] = _no_models
        """Asked before a Triton is started: the models that it is to load before it opens its ports."""
        self.on_started_with: Callable[[Collection[str], int], Awaitable[None]] = _ignore
        """Called with those and the generation that is about to be ready."""
        self.starts_with: Collection[str] = ()
        """What the Triton that is about to be ready loads by itself."""
        self._ready = asyncio.Event()
        self._stop = asyncio.Event()
        self._handed_over = asyncio.Event()

    @property
    def repository(self) -> Path:
        """Triton's model repository."""
        return self.data_dir / "repository"

    async def adopt(self) -> bool:
        """Takes over what an earlier agent of the directory left, before `run`; whether there was something to take."""
        return False

    async def run(self) -> None:
        """Until stopped or handed over. Cancelled, it leaves what it started to the agent that comes after."""
        raise NotImplementedError

    def stop(self) -> None:
        """Lets requests in flight finish (at most drain_s), then `run` returns."""
        self._stop.set()

    def hand_over(self) -> None:
        """`run` returns at once, and Triton goes on without this agent."""
        self._handed_over.set()

    async def certificate_changed(self) -> None:
        """Uses the certificate that lies on the disk by now for calls to Triton. Raises PreconditionError."""
        await self.client.renew()

    async def wait_ready(self) -> int:
        """Waits until it is ready; gives the generation."""
        await self._ready.wait()
        return self.status.generation

    def report(self) -> membership_pb2.Triton:
        """As told to the coordinator."""
        triton = self.settings.triton
        return membership_pb2.Triton(
            state=self.status.state,
            grpc_port=int(self.client.address.rpartition(":")[2]),
            http_port=0 if self.settings.tls.on else triton.http_port,  # REST without TLS is in no route
            metrics_port=triton.metrics_port,
            pid=self.status.pid,
            version=self.status.version,
            message=self.status.message,
        )

    def _set(self, **changes: Any) -> None:
        status = replace(self.status, **changes)
        if status == self.status:
            return
        self.status = status
        if status.ready:
            self._ready.set()
        else:
            self._ready.clear()
        log.info(
            "triton.state",
            state=membership_pb2.TritonState.Name(status.state),
            pid=status.pid,
            generation=status.generation,
            message=status.message,
        )
        self.on_change()


async def _no_models() -> Collection[str]:
    return ()


async def _ignore(_names: Collection[str], _generation: int) -> None:
    return
