"""Simulated clients in processes of their own: beside the agents they would wait for one processor, and so for nothing
that is measured.

python -m tools.simulate.crowd reads one line of JSON ({"clients": [[number, model, [coordinator, ...]], ...]}) and
plays these clients until its standard input ends. It writes a line of JSON for what each acknowledges: [number, model,
[node, ...], moment], and for a stream that was lost: [reason].
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from typing import Any

from tools.simulate.changes import Board, Endpoints
from tools.simulate.client import Client, Traffic

CLIENTS = 500
"""In one process, at most."""
LONGEST_LINE = 1 << 22
_STOP_TIMEOUT_S = 10.0

Wanted = tuple[int, str, tuple[str, ...]]
"""(client's number, its model, its coordinators in the order in which they are tried)."""


class Crowd:
    """One such process. `run` is its life, seen from here."""

    def __init__(self, clients: Sequence[Wanted], board: Board, traffic: Traffic) -> None:
        self._clients = clients
        self._board = board
        self._traffic = traffic
        self.pid = 0
        """0 before it has started."""

    async def run(self) -> None:
        """Takes what its clients tell, until cancelled; the process is gone afterwards."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            limit=LONGEST_LINE,
        )
        self.pid = process.pid
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps({"clients": self._clients}).encode() + b"\n")
            async for line in process.stdout:
                self._take(json.loads(line))
            self._traffic.streams_lost[f"a process of {len(self._clients)} clients ended"] += 1
        finally:
            await _end(process)

    def _take(self, told: list[Any]) -> None:
        if len(told) == 1:
            self._traffic.streams_lost[told[0]] += 1
        else:
            number, model, endpoints, moment = told
            self._board.acknowledged(number, model, frozenset(endpoints), moment)


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()
        async with asyncio.timeout(_STOP_TIMEOUT_S):
            await process.wait()


async def _play(clients: Sequence[Wanted]) -> None:
    """Plays the clients until standard input ends: the process that started this one is gone then, however it went."""
    traffic = Traffic()
    lives = [
        asyncio.create_task(Client(number, model, tuple(coordinators), traffic, _tell).run())
        for number, model, coordinators in clients
    ]
    losses = asyncio.create_task(_tell_losses(traffic))
    await asyncio.to_thread(sys.stdin.read)
    for task in [losses, *lives]:
        task.cancel()
    await asyncio.wait([losses, *lives])


def _tell(client: int, model: str, endpoints: Endpoints, moment: float) -> None:
    _write([client, model, sorted(endpoints), moment])


async def _tell_losses(traffic: Traffic) -> None:
    while True:
        for reason, count in traffic.streams_lost.items():
            for _ in range(count):
                _write([reason])
        traffic.streams_lost.clear()
        await asyncio.sleep(0.5)


def _write(line: list[Any]) -> None:
    sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(_play(json.loads(sys.stdin.readline())["clients"]))
