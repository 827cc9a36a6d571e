"""A Triton that somebody else runs."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path

from meshkit.errors import AimeshError
from node_agent.settings import AgentSettings
from node_agent.triton.selftest import run_selftest
from node_agent.triton.server import READY, STARTING, STOPPING, InferenceServer
from node_agent.waiting import first

_POLL_S = 1.0


class ExternalTriton(InferenceServer):
    """Triton at triton.external_address, whose model repository is <data_dir>/repository. Never started or stopped."""

    def __init__(self, settings: AgentSettings, data_dir: Path) -> None:
        assert settings.triton.external_address is not None
        super().__init__(settings, data_dir, settings.triton.external_address)

    async def adopt(self) -> bool:
        """It is never this agent's own; what an earlier agent had loaded there goes on."""
        self.repository.mkdir(parents=True, exist_ok=True)
        await self._look()
        return self.status.ready

    async def run(self) -> None:
        """Follows whether it is ready until stopped."""
        self.repository.mkdir(parents=True, exist_ok=True)
        try:
            while not self._stop.is_set() and not self._handed_over.is_set():
                await self._look()
                with suppress(TimeoutError):
                    async with asyncio.timeout(_POLL_S):
                        await first(self._stop.wait(), self._handed_over.wait())
            self._set(state=STOPPING)
        finally:
            await self.client.close()

    async def _look(self) -> None:
        if not await self.client.live():
            self._set(state=STARTING, message=f"no Triton answers at {self.client.address}")
        elif not self.status.ready:
            try:
                version = await self.client.version()
                await run_selftest(self.client, self.repository)
            except AimeshError as error:
                self._set(state=STARTING, message=str(error))
            else:
                self._set(state=READY, generation=self.status.generation + 1, version=version, message="")
