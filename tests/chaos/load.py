"""One client program under test: python -m tests.chaos.load CLIENT TARGET RATE OUT.

Asks the stock asyncio Triton client at a fixed rate, whatever the answers take, until SIGTERM, and then for what is in
flight. Each request has a number of its own, so that a wrong answer is seen. Writes one JSON line a request to OUT, and
to OUT.flight the start of the oldest request in flight, so that others know what is complete.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from tests.chaos.history import Request, to_line

MODEL = "adder"
DEADLINE_S = 30.0
FLIGHT_S = 0.1
# What a client must set to notice a host that vanished without a word: see docs/operations/failures.md.
CHANNEL = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.enable_http_proxy", 0),
]


@dataclass
class Load:
    """Requests at a rate, and where they are written down."""

    name: str
    rate: float
    client: Any
    out: TextIO
    flight: Path
    pending: dict[asyncio.Task[None], float] = field(default_factory=dict)

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; then waits for what is in flight."""
        due, asked = time.monotonic(), 0
        while not stop.is_set():
            task = asyncio.create_task(self._ask(asked))
            self.pending[task] = time.monotonic()
            task.add_done_callback(self.pending.pop)
            asked += 1
            due = max(due + 1 / self.rate, time.monotonic() - 1.0)  # what a stall made late is not all sent at once
            await asyncio.sleep(max(0.0, due - time.monotonic()))
        await asyncio.gather(*self.pending)

    async def tell_flight(self) -> None:
        """Says up to when all is written. Runs for ever."""
        while True:
            oldest = min(self.pending.values(), default=time.monotonic())
            self.out.flush()
            self.flight.write_text(str(oldest))
            await asyncio.sleep(FLIGHT_S)

    async def _ask(self, number: int) -> None:
        tensor = triton.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([number % 1_000_000], dtype=np.float32))
        start = time.monotonic()
        try:
            answer = await self.client.infer(MODEL, [tensor], client_timeout=DEADLINE_S)
        except InferenceServerException as error:
            code = str(error.status()).removeprefix("StatusCode.")
            fact = Request(self.name, start, time.monotonic(), code, message=str(error.message())[:300])
        else:
            right = answer.as_numpy("y").tolist() == [number % 1_000_000 + 1]
            node = answer.as_numpy("node")[0].decode()
            fact = Request(self.name, start, time.monotonic(), "OK", node, right)
        self.out.write(to_line(fact) + "\n")


async def main(name: str, target: str, rate: float, file: TextIO) -> None:
    """The life of the program."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with triton.InferenceServerClient(target, channel_args=CHANNEL) as client:
        load = Load(name, rate, client, file, Path(f"{file.name}.flight"))
        flight = asyncio.create_task(load.tell_flight())
        await load.run(stop)
        flight.cancel()


if __name__ == "__main__":
    client_name, client_target, client_rate, out = sys.argv[1:]
    with Path(out).open("a") as written:
        asyncio.run(main(client_name, client_target, float(client_rate), written))
