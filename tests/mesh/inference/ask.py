"""Asks a language model over ModelStreamInfer with Triton's own client."""

from __future__ import annotations

import json
import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import np_to_triton_dtype

DEADLINE_S = 60


class RefusedError(Exception):
    """What the model said against a request."""


def tensor(name: str, values: npt.NDArray[Any]) -> triton.InferInput:
    """An input of Triton's client."""
    made = triton.InferInput(name, list(values.shape), np_to_triton_dtype(values.dtype))
    made.set_data_from_numpy(values)
    return made


@dataclass
class Stream:
    """One request on a stream of its own; iterating gives texts as they come. Raises RefusedError."""

    address: str
    model: str
    arrived: queue.Queue[tuple[float, Any, Any]] = field(default_factory=queue.Queue)
    times: list[float] = field(default_factory=list)
    """Seconds from the request to each text."""

    def __post_init__(self) -> None:
        self.client = triton.InferenceServerClient(self.address)
        self.client.start_stream(lambda result, error: self.arrived.put((time.monotonic(), result, error)))

    def send(self, **inputs: Any) -> Stream:
        """Sends text_input, messages, stream, exclude_input_in_output; anything else is a sampling parameter."""
        flags = ("stream", "exclude_input_in_output")
        texts: dict[str, str] = {name: inputs.pop(name) for name in ("text_input", "messages") if name in inputs}
        tensors = [tensor(name, np.array([inputs.pop(name)])) for name in flags if name in inputs]
        sampling = inputs.pop("sampling_parameters", None) or json.dumps({"temperature": 0, **inputs})
        for name, text in {**texts, "sampling_parameters": sampling}.items():
            tensors.append(tensor(name, np.array([text.encode()], dtype=np.object_)))
        self.sent = time.monotonic()
        self.client.async_stream_infer(self.model, tensors, enable_empty_final_response=True)
        return self

    def __iter__(self) -> Iterator[str]:
        while True:
            when, result, error = self.arrived.get(timeout=DEADLINE_S)
            if error is not None:
                self.close(cancel=False)
                raise RefusedError(error.message())
            text = result.as_numpy("text_output")
            if text is not None and len(text):
                self.times.append(when - self.sent)
                yield text[0].decode()
            if result.get_response().parameters["triton_final_response"].bool_param:
                self.close(cancel=False)
                return

    def close(self, *, cancel: bool = True) -> None:
        """Ends the stream, and with it what is still being worked on.

        A stream whose last response has come must not be cancelled: Triton 2.51 may then keep the request for ever,
        and with it the model, which never unloads.
        """
        self.client.stop_stream(cancel_requests=cancel)
        self.client.close()
