"""Triton Python-backend model that serves a GGUF language model through llama.cpp (xllamacpp).

One engine a replica with `n_parallel` slots that are batched continuously; one worker thread a slot feeds it. Requests
beyond the slots wait here, at most `max_queue` of them. Tensors are those of Triton's vLLM backend, and so are the
rules of `exclude_input_in_output` (the prompt comes back with a whole answer unless it is true; never with a stream)
and the sampling defaults; `messages` is an addition. Decoupled: one response for each piece of text when `stream` is
true, one response with the whole text otherwise.

Parameters (text): `entry` (the GGUF file), `n_ctx` (tokens of prompt and answer of ONE request; the engine's context is
n_ctx * n_parallel), `n_parallel`, `n_threads` (all cores but one unless given: the engine's threads wait for each other
by spinning, and where others want the same cores, as many threads as cores can be a hundred times slower), `n_batch`,
`n_ubatch`, `n_gpu_layers`, `cache_ram_mib` (host memory for prompts of earlier requests, besides what the slots still
hold), `max_queue`.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils
import xllamacpp

DEFAULTS = {
    "n_ctx": 2048,
    "n_parallel": 4,
    "n_batch": 2048,
    "n_ubatch": 512,
    "n_gpu_layers": 0,
    "cache_ram_mib": 0,
    "max_queue": 256,
}
_NUMBER = (int, float)
# Name in sampling_parameters -> (name in the engine, accepted types, least, most).
SAMPLING: dict[str, tuple[str, tuple[type, ...], float, float]] = {
    "max_tokens": ("max_tokens", (int,), 1, 1 << 30),
    "temperature": ("temperature", _NUMBER, 0, 100),
    "top_p": ("top_p", _NUMBER, 0, 1),
    "top_k": ("top_k", (int,), -1, 1 << 30),
    "min_p": ("min_p", _NUMBER, 0, 1),
    "seed": ("seed", (int,), 0, (1 << 32) - 1),
    "presence_penalty": ("presence_penalty", _NUMBER, -2, 2),
    "frequency_penalty": ("frequency_penalty", _NUMBER, -2, 2),
    "repetition_penalty": ("repeat_penalty", _NUMBER, 0, 100),
    "ignore_eos": ("ignore_eos", (bool,), 0, 1),
}
# vLLM's defaults, so that a model answers alike on either engine.
VLLM_DEFAULTS = {"temperature": 1.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0}
VLLM_MAX_TOKENS = 16


class RefusedError(Exception):
    """The request is wrong; the message goes to the caller."""


@dataclass(frozen=True)
class Generation:
    """One request, checked: the engine's request body and how to answer."""

    body: Mapping[str, Any]
    stream: bool
    prefix: str = ""
    """Text put before the answer: the prompt when it is asked for."""

    @property
    def is_chat(self) -> bool:
        """Whether the engine applies the chat template."""
        return "messages" in self.body


@dataclass
class Answer:
    """What came out of the engine so far."""

    text: list[str] = field(default_factory=list)
    error: str = ""
    callers_fault: bool = True
    """Of the error: whether the request was wrong, rather than the engine."""
    cancelled: bool = False


class TritonPythonModel:
    """What Triton calls."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Loads the model. Raises with the engine's reason when it cannot."""
        parameters = {
            key: value["string_value"] for key, value in json.loads(args["model_config"])["parameters"].items()
        }
        number = {key: int(parameters.get(key, default)) for key, default in DEFAULTS.items()}
        path = Path(args["model_repository"]) / args["model_version"] / parameters["entry"]
        # The engine always opens its own HTTP server: on a socket of this user, gone before anyone could call it.
        with tempfile.TemporaryDirectory(prefix="aimesh-llama-") as sockets:
            settings = _engine_settings(path, parameters, number, Path(sockets) / "engine.sock")
            self._engine = xllamacpp.Server(settings)
        self._room = threading.Semaphore(number["n_parallel"] + number["max_queue"])
        self._limit = number["max_queue"]
        self._workers = ThreadPoolExecutor(number["n_parallel"], thread_name_prefix="generate")

    def execute(self, requests: list[Any]) -> None:
        """Checks each request and hands it to a worker; never waits."""
        for request in requests:
            sender = request.get_response_sender()
            try:
                generation = read_request(request)
            except RefusedError as error:
                _send_error(sender, str(error), pb_utils.TritonError.INVALID_ARG)
                continue
            if not self._room.acquire(blocking=False):
                message = f"{self._limit} requests are waiting already (parameter max_queue); try again later"
                _send_error(sender, message, pb_utils.TritonError.UNAVAILABLE)
                continue
            self._workers.submit(self._serve, generation, sender)

    def finalize(self) -> None:
        """Waits for what is in flight, then frees the engine."""
        self._workers.shutdown(wait=True)
        del self._engine

    def _serve(self, generation: Generation, sender: Any) -> None:
        try:
            answer = Answer(cancelled=True) if sender.is_cancelled() else self._generate(generation, sender)
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller must get an answer
            # The engine raises when a chat template refuses the turns; anything else it raises is its own fault.
            answer = Answer(error=str(error), callers_fault=generation.is_chat)
        finally:
            self._room.release()
        _finish(generation, answer, sender)

    def _generate(self, generation: Generation, sender: Any) -> Answer:
        answer = Answer()

        def on_chunk(chunk: dict[str, Any]) -> bool:
            """Takes one chunk; True tells the engine to stop working on this request."""
            if "error" in chunk:
                answer.error = _explain(chunk["error"])
                answer.callers_fault = chunk["error"].get("code") == 400
                return True
            if sender.is_cancelled():
                answer.cancelled = True
                return True
            text = _text_of(chunk)
            if text and generation.stream:
                sender.send(_response(text))
            elif text:
                answer.text.append(text)
            return False

        call = self._engine.handle_chat_completions if generation.is_chat else self._engine.handle_completions
        call(dict(generation.body), on_chunk)
        return answer


def _engine_settings(path: Path, parameters: Mapping[str, str], number: Mapping[str, int], socket: Path) -> Any:
    settings = xllamacpp.CommonParams()
    settings.model.path = str(path)
    settings.n_parallel = number["n_parallel"]
    settings.n_ctx = number["n_ctx"] * number["n_parallel"]
    settings.n_batch = number["n_batch"]
    settings.n_ubatch = number["n_ubatch"]
    settings.n_gpu_layers = number["n_gpu_layers"]
    settings.cache_ram_mib = number["cache_ram_mib"]
    threads = int(parameters.get("n_threads", max(1, len(os.sched_getaffinity(0)) - 1)))
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = threads
    # Sizes are taken as given: placement has counted them.
    settings.fit_params = False
    settings.hostnames = [str(socket)]
    settings.ui = False
    settings.verbosity = 0
    return settings


def read_request(request: Any) -> Generation:
    """The request's tensors as a Generation. Raises RefusedError."""
    text, messages = _text(request, "text_input"), _text(request, "messages")
    stream = bool(_flag(request, "stream", default=False))
    exclude = _flag(request, "exclude_input_in_output", default=None)
    body: dict[str, Any] = {**VLLM_DEFAULTS, **read_sampling(_text(request, "sampling_parameters"))}
    # Progress chunks let a cancelled request be noticed while its prompt is still being read.
    body |= {"stream": True, "return_progress": True, "cache_prompt": True}
    if messages is not None:
        if text:
            raise RefusedError("text_input and messages were both given: give one of them")
        if exclude is False:
            raise RefusedError("exclude_input_in_output = false is not allowed with messages")
        return Generation({**body, "messages": read_messages(messages)}, stream)
    if not text:
        raise RefusedError("text_input or messages is required: BYTES of shape [1], and not empty")
    if stream and exclude is False:
        raise RefusedError("exclude_input_in_output = false is not allowed when streaming")
    prefix = "" if stream or exclude else text
    return Generation({"max_tokens": VLLM_MAX_TOKENS, **body, "prompt": text}, stream, prefix)


def read_sampling(document: str | None) -> dict[str, Any]:
    """sampling_parameters in the engine's names. Raises RefusedError for what is unknown or out of range."""
    given = _json(document, "sampling_parameters") if document else {}
    if not isinstance(given, dict):
        raise RefusedError(f"sampling_parameters must be a JSON object, not {json.dumps(given)[:100]}")
    if unknown := sorted(given.keys() - SAMPLING.keys() - {"stop"}):
        raise RefusedError(
            f"sampling_parameters: unknown {', '.join(unknown)}; known: {', '.join(sorted([*SAMPLING, 'stop']))}"
        )
    taken: dict[str, Any] = {}
    for key, value in given.items():
        if key == "stop":
            taken["stop"] = _stop(value)
            continue
        taken[SAMPLING[key][0]] = _in_range(key, value, *SAMPLING[key][1:])
    return taken


def read_messages(document: str) -> list[dict[str, str]]:
    """Chat turns as the engine takes them. Raises RefusedError."""
    turns = _json(document, "messages")
    if not isinstance(turns, list) or not turns:
        raise RefusedError('messages must be a JSON list of turns: [{"role": "user", "content": "..."}]')
    for index, turn in enumerate(turns):
        if not isinstance(turn, dict) or not all(isinstance(turn.get(key), str) for key in ("role", "content")):
            raise RefusedError(
                f'messages[{index}] must be {{"role": text, "content": text}}, not {json.dumps(turn)[:100]}'
            )
    return turns


def _in_range(key: str, value: Any, types: tuple[type, ...], least: float, most: float) -> Any:
    right_type = isinstance(value, types) and isinstance(value, bool) is (bool in types)
    if not right_type or not least <= value <= most:
        kind = " or ".join(kind.__name__ for kind in types)
        raise RefusedError(f"sampling_parameters: {key} = {json.dumps(value)}: must be {kind}, {least} to {most}")
    return value


def _stop(value: Any) -> list[str]:
    words = [value] if isinstance(value, str) else value
    if not isinstance(words, list) or not all(isinstance(word, str) and word for word in words):
        raise RefusedError(f"sampling_parameters: stop = {json.dumps(value)}: must be text or a list of texts")
    return words


def _json(document: str, name: str) -> Any:
    try:
        return json.loads(document)
    except ValueError as error:
        raise RefusedError(f"{name} is not valid JSON: {error}") from None


def _text(request: Any, name: str) -> str | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    if tensor is None:
        return None
    values = tensor.as_numpy().reshape(-1)
    if len(values) != 1:
        raise RefusedError(f"{name} must hold one element, not {len(values)}")
    try:
        return str(values[0].decode())
    except UnicodeDecodeError:
        raise RefusedError(f"{name} is not UTF-8") from None


def _flag(request: Any, name: str, default: bool | None) -> bool | None:
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return default if tensor is None else bool(tensor.as_numpy().reshape(-1)[0])


def _text_of(chunk: Mapping[str, Any]) -> str:
    choices = chunk.get("choices") or [{}]
    return str(choices[0].get("text") or choices[0].get("delta", {}).get("content") or "")


def _explain(error: Mapping[str, Any]) -> str:
    if error.get("type") == "exceed_context_size_error":
        return (
            f"the prompt has {error['n_prompt_tokens']} tokens, but one request may have {error['n_ctx']} in all"
            " (parameter n_ctx): shorten it, or deploy the model with a larger n_ctx"
        )
    return str(error.get("message", error))


def _finish(generation: Generation, answer: Answer, sender: Any) -> None:
    if answer.cancelled:
        _send_error(sender, "the caller went away", pb_utils.TritonError.CANCELLED)
    elif answer.error:
        code = pb_utils.TritonError.INVALID_ARG if answer.callers_fault else pb_utils.TritonError.INTERNAL
        _send_error(sender, answer.error, code)
    elif generation.stream:
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
    else:
        text = generation.prefix + "".join(answer.text)
        sender.send(_response(text), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def _response(text: str) -> Any:
    return pb_utils.InferenceResponse([pb_utils.Tensor("text_output", np.array([text.encode()], dtype=np.object_))])


def _send_error(sender: Any, message: str, code: int) -> None:
    response = pb_utils.InferenceResponse(error=pb_utils.TritonError(message, code))
    sender.send(response, flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
