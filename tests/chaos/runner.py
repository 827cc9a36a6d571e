"""Runs scenarios on a mesh under load and keeps what happened."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.chaos import models
from tests.chaos.history import History, Request, from_line
from tests.chaos.load import MODEL
from tests.chaos.mesh import REPO, Mesh, Shape
from tests.chaos.observer import Observer
from tests.chaos.processes import Process
from tests.chaos.scenarios import Scenario
from tests.chaos.stage import Stage
from tests.processes import eventually

RATE = 40.0
"""Requests a second of each client."""
SETTLE_S = 60.0
"""How long a mesh is waited for before it is given up."""
QUIET_S = 1.0
"""How long nothing must be wrong to be believed."""


class Runner:
    """One mesh, its clients and its observer, for any number of scenarios one after the other."""

    def __init__(self, folder: Path, shape: Shape) -> None:
        self.mesh = Mesh(folder, shape)
        self.history = History()
        self.observer = Observer(self.mesh, lambda fact: self.history.add(fact))
        self._clients = {"xds": f"xds:///{MODEL}", "through-gateway": self.mesh.gateway}
        self.stage = Stage(self.mesh, self.observer, self._clients, lambda event: self.history.add(event))
        self._watching: asyncio.Task[None] | None = None

    async def start(self, replicas: int = 2) -> None:
        """Starts the mesh, deploys the model, starts the load; returns when all is well."""
        await self.mesh.start()
        await self.mesh.deploy(MODEL, "1.0.0", models.PLAIN, replicas)
        await self.mesh.placed(MODEL, "1.0.0", SETTLE_S)
        self._watching = asyncio.create_task(self.observer.run())
        told = {"GRPC_XDS_BOOTSTRAP": str(self.mesh.xds_bootstrap()), "PYTHONPATH": str(REPO)}
        for name, target in self._clients.items():
            argv = [sys.executable, "-m", "tests.chaos.load", name, target, str(RATE), str(self._out(name))]
            self.mesh.processes[name] = Process(name, argv, self.mesh.folder / "run", None, told)
            self.mesh.processes[name].launch()
        await self.settled()

    async def stop(self) -> None:
        """Ends everything."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        await self.mesh.stop()

    async def run(self, scenario: Scenario) -> History:
        """Runs one scenario from a mesh that is well to one that is well again, or is given up.

        Raises when an act cannot be done; the history until then is in `history`.
        """
        await self.stage.cast()
        self.history = history = History(scenario.name, time.monotonic(), roles=self.stage.roles)
        await asyncio.sleep(QUIET_S / 2)  # some load before the first event
        began = time.monotonic()
        for at, act in scenario.steps:
            await asyncio.sleep(max(0.0, began + at - time.monotonic()))
            await self.stage.do(act)
        history.healed = time.monotonic()
        with suppress(TimeoutError):  # the check says what was still wrong
            await self.settled()
        history.requests = await self.requests(history.began, time.monotonic())
        return history

    async def heal(self) -> bool:
        """Undoes whatever a scenario left. Whether all is well then."""
        await self.stage.heal()
        try:
            await self.settled()
        except TimeoutError:
            return False
        return all(self.mesh.processes[name].alive for name in self._clients)

    async def settled(self) -> None:
        """Returns when nothing has been wrong for a while. Raises TimeoutError."""
        async with asyncio.timeout(SETTLE_S):
            good_since = None
            while good_since is None or time.monotonic() - good_since < QUIET_S:
                assert self._watching is not None
                if self._watching.done():
                    self._watching.result()
                good_since = None if await self.observer.problems() else good_since or time.monotonic()
                await asyncio.sleep(0.1)

    async def requests(self, began: float, ended: float) -> list[Request]:
        """What the clients asked in that time, once all of it is answered."""

        def complete() -> bool:
            flights = [Path(f"{self._out(name)}.flight").read_text() for name in self._clients]
            return all(float(flight or 0) > ended for flight in flights)

        await eventually(complete, within_s=SETTLE_S, what="an answer or an error to every request")
        found = []
        for name in self._clients:
            lines = self._out(name).read_text().splitlines()
            found += [fact for fact in map(from_line, lines[-20_000:]) if began <= fact.start <= ended]
        return sorted(found, key=lambda request: request.start)

    def _out(self, client: str) -> Path:
        return self.mesh.folder / "run" / f"{client}.jsonl"
