"""One mesh under load for all scenarios of one shape; a scenario that leaves it ill gets the next one a new mesh."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.chaos.mesh import Shape
from tests.chaos.runner import Runner
from tests.chaos.scenarios import HANG_TIMEOUT_S

Result = TypeVar("Result")

STORE_BYTES = 32 << 20
"""agent.disk_bytes, so that a small model fills the store."""


class Loop:
    """An event loop that turns between tests too: the proxy and the observer live in it."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chaos")
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Runs it there and waits for it. When waiting is cut short, it is cancelled."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def close(self) -> None:
        """Ends the thread."""
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@dataclass
class Meshes:
    """Hands out a runner whose mesh is well."""

    folder: Path
    loop: Loop = field(default_factory=Loop)
    _runner: Runner | None = None
    _made: int = 0

    def get(self) -> Runner:
        """The runner of the scenario before, or a new one."""
        if self._runner is None:
            self._made += 1
            shape = Shape(agent={"disk_bytes": STORE_BYTES}, triton={"hang_timeout_s": HANG_TIMEOUT_S})
            runner = Runner(self.folder / f"mesh-{self._made}", shape)
            try:
                self.loop.run(runner.start())
            except BaseException:
                self.loop.run(runner.stop())
                raise
            self._runner = runner
        return self._runner

    def heal(self) -> None:
        """After a scenario that failed: mends the mesh, or gives it up."""
        if self._runner is not None and not self.loop.run(self._runner.heal()):
            self.drop()

    def drop(self) -> None:
        """Ends the mesh."""
        if self._runner is not None:
            runner, self._runner = self._runner, None
            self.loop.run(runner.stop())

    def close(self) -> None:
        """Ends everything."""
        self.drop()
        self.loop.close()


@pytest.fixture(scope="package")  # ended before the next area's tests, which would feel its load
def meshes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Meshes]:
    found = Meshes(tmp_path_factory.mktemp("chaos"))
    try:
        yield found
    finally:
        found.close()
