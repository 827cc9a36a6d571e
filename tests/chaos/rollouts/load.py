"""One client program of a rollout: python -m tests.chaos.rollouts.load CLIENT TARGET RATE OUT.

The load of the other scenarios, of callers with names, who write down which version answered.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.utils import InferenceServerException

from tests.chaos.history import to_line
from tests.chaos.load import CHANNEL, DEADLINE_S, Load
from tests.chaos.rollouts.history import Answer
from tests.chaos.rollouts.models import MODEL

HEADER = "x-user"
USERS = 40
"""Callers of each client program, in turn."""


class Callers(Load):
    """Requests at a rate, of callers in turn."""

    async def _ask(self, number: int) -> None:
        user, x = f"{self.name}-{number % USERS}", number % 1_000_000
        tensor = triton.InferInput("x", [1], "FP32")
        tensor.set_data_from_numpy(np.array([x], dtype=np.float32))
        start = time.monotonic()
        try:
            answer = await self.client.infer(MODEL, [tensor], client_timeout=DEADLINE_S, headers={HEADER: user})
        except InferenceServerException as error:
            code = str(error.status()).removeprefix("StatusCode.")
            fact = Answer(self.name, start, time.monotonic(), code, user, message=str(error.message())[:300])
        else:
            version, right = answer.as_numpy("version")[0].decode(), answer.as_numpy("y").tolist() == [x + 1]
            fact = Answer(self.name, start, time.monotonic(), "OK", user, version, right)
        self.out.write(to_line(fact) + "\n")


async def main(name: str, target: str, rate: float, file: TextIO) -> None:
    """The life of the program."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with triton.InferenceServerClient(target, channel_args=CHANNEL) as client:
        load = Callers(name, rate, client, file, Path(f"{file.name}.flight"))
        flight = asyncio.create_task(load.tell_flight())
        await load.run(stop)
        flight.cancel()


if __name__ == "__main__":
    client_name, client_target, client_rate, out = sys.argv[1:]
    with Path(out).open("a") as written:
        asyncio.run(main(client_name, client_target, float(client_rate), written))
