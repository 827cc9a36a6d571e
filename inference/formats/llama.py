"""GGUF language models, served by llama.cpp."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aimesh.registry.v1 import registry_pb2
from inference.formats.source import (
    MIB,
    Description,
    Source,
    Wishes,
    check_keys,
    only_file,
    refuse_tensors,
    whole_number,
)
from inference.self_test import text_request
from inference.signature import tensor
from meshkit.errors import InvalidInputError, PreconditionError

MAGIC = b"GGUF"
PARAMETERS = ("n_ctx", "n_parallel", "n_threads", "n_batch", "n_ubatch", "n_gpu_layers", "cache_ram_mib", "max_queue")
DEFAULT_CONTEXT = 2048
DEFAULT_PARALLEL = 4
_ENGINE_BYTES = 100 * MIB  # measured: stub, NumPy and engine with a model whose other parts are subtracted
_KV_ELEMENT_BYTES = 2  # f16, the engine's default for keys and values


@dataclass(frozen=True)
class Gguf:
    """What memory depends on, from a GGUF header."""

    size: int
    """Bytes of the file."""
    context: int
    """Tokens that the model was trained for."""
    layers: int
    kv_bytes_per_token: int
    """Of all layers together."""
    width: int
    """Elements of a token's state and of its widest hidden layer together."""
    vocabulary: int


def is_gguf(source: Source, name: str) -> bool:
    """Whether a file begins as GGUF does."""
    return source.head(name, 4) == MAGIC


def recognises(source: Source) -> bool:
    """Whether any file is GGUF."""
    return any(is_gguf(source, name) for name in source.files)


def describe(source: Source, wishes: Wishes) -> Description:
    """Reads and checks the one GGUF file. Raises InvalidInputError."""
    refuse_tensors(wishes, "llama")
    check_keys(wishes.parameters, PARAMETERS, "llama")
    entry = only_file(source, [name for name in source.files if is_gguf(source, name)], "GGUF file")
    model = read(source.path(entry))
    parameters = _parameters(wishes, model)
    return Description(
        files=(entry,),
        signature=signature(),
        requirements=requirements(model, parameters),
        parameters={**parameters, "entry": entry},
        self_test=text_request(text_input="Hello", sampling_parameters='{"max_tokens": 1}'),
    )


def signature() -> registry_pb2.Signature:
    """The tensors of Triton's vLLM backend, and `messages`."""
    return registry_pb2.Signature(
        inputs=[
            tensor("text_input", "BYTES", [1], optional=True),
            tensor("stream", "BOOL", [1], optional=True),
            tensor("sampling_parameters", "BYTES", [1], optional=True),
            tensor("exclude_input_in_output", "BOOL", [1], optional=True),
            tensor("messages", "BYTES", [1], optional=True),
        ],
        outputs=[tensor("text_output", "BYTES", [-1])],
        decoupled=True,
    )


def read(path: Path) -> Gguf:
    """The header of a GGUF file whose tensors are all there. Raises InvalidInputError when it is broken or cut."""
    try:
        import gguf  # only a machine that pushes GGUF files needs it
    except ImportError:
        raise PreconditionError(
            "reading GGUF files needs the package gguf", hint="pip install 'aimesh[llama]'"
        ) from None
    try:
        reader = gguf.GGUFReader(path)
        fields = {name: field.contents() for name, field in reader.fields.items() if not _is_vocabulary(name)}
        tokens = reader.fields.get("tokenizer.ggml.tokens")
        vocabulary = len(tokens.data) if tokens else 0
    except (ValueError, IndexError, KeyError, OverflowError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path.name} is a GGUF file, but cut short or broken: {error}", hint="copy or download it again"
        ) from None
    return _header(path, fields, vocabulary)


def requirements(model: Gguf, parameters: dict[str, str]) -> registry_pb2.Requirements:
    """Estimate: weights (the file) + keys and values of every slot + what a batch computes with + the engine itself.

    The context is n_ctx tokens in each of n_parallel slots. Layers that go to the GPU take their share of weights and
    keys and values with them. On a CPU it was 2 % under to 8 % over the resident memory of the loaded and used model,
    and 10 % over with a context of 512 tokens; the part of a GPU is not measured.
    """
    slots, batch = int(parameters["n_parallel"]), int(parameters["n_ubatch"])
    context = int(parameters["n_ctx"]) * slots
    # Each of a batch's tokens takes about two float32 copies of its state; on a GPU room for all logits is set aside.
    compute = batch * model.width * 8 + slots * model.vocabulary * 4
    logits = batch * model.vocabulary * 4
    cache = int(parameters.get("cache_ram_mib", 0)) * MIB
    layered = model.size + model.kv_bytes_per_token * context
    on_gpu = int(parameters.get("n_gpu_layers", 0))
    share = 1.0 if on_gpu < 0 else min(1.0, on_gpu / (model.layers + 1))
    return registry_pb2.Requirements(
        memory_bytes=int(layered * (1 - share)) + compute + cache + _ENGINE_BYTES,
        gpu_memory_bytes=int(layered * share) + compute + logits if share else 0,
    )


def _parameters(wishes: Wishes, model: Gguf) -> dict[str, str]:
    given = wishes.parameters
    n_ctx = whole_number(given, "n_ctx", min(DEFAULT_CONTEXT, model.context), 16, model.context)
    n_parallel = whole_number(given, "n_parallel", DEFAULT_PARALLEL, 1, 256)
    n_batch = whole_number(given, "n_batch", 2048, 1, 1 << 16)
    n_ubatch = whole_number(given, "n_ubatch", min(512, n_batch), 1, 1 << 16)
    if n_ubatch > n_batch:
        raise InvalidInputError(
            f"n_ubatch = {n_ubatch} is more than n_batch = {n_batch}", hint="give n_batch at least that"
        )
    for key, least, most in (
        ("n_threads", 1, 1024),
        ("n_gpu_layers", -1, 10_000),
        ("cache_ram_mib", 0, 1 << 20),
        ("max_queue", 0, 1 << 20),
    ):
        whole_number(given, key, least, least, most)
    sizes = {"n_ctx": n_ctx, "n_parallel": n_parallel, "n_batch": n_batch, "n_ubatch": n_ubatch}
    return {**given, **{key: str(value) for key, value in sizes.items()}}


def _is_vocabulary(name: str) -> bool:
    return name.startswith("tokenizer.ggml.")


def _header(path: Path, fields: dict[str, Any], vocabulary: int) -> Gguf:
    architecture = fields.get("general.architecture")
    try:
        heads = _most(fields[f"{architecture}.attention.head_count"])
        state = fields[f"{architecture}.embedding_length"]
        hidden = _most(fields.get(f"{architecture}.feed_forward_length", 4 * state))
        layers = fields[f"{architecture}.block_count"]
        kv_heads = fields.get(f"{architecture}.attention.head_count_kv", heads)
        key = fields.get(f"{architecture}.attention.key_length", state // heads)
        value = fields.get(f"{architecture}.attention.value_length", state // heads)
        context = fields[f"{architecture}.context_length"]
    except (KeyError, TypeError, ZeroDivisionError):
        raise InvalidInputError(
            f"{path.name} is a GGUF file of architecture {architecture!r} without the sizes of a language model",
            hint="push a model that llama.cpp can run",
        ) from None
    all_kv_heads = sum(kv_heads) if isinstance(kv_heads, list) else kv_heads * layers
    per_token = all_kv_heads * (key + value) * _KV_ELEMENT_BYTES
    return Gguf(path.stat().st_size, context, layers, per_token, state + hidden, vocabulary)


def _most(value: Any) -> int:
    return int(max(value)) if isinstance(value, list) else int(value)
