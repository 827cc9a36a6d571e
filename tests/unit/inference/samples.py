"""Tiny real models, written by hand or by the libraries that own the formats."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np

CONFIG = """
name: "any"
backend: "python"
max_batch_size: {batch}
input {{ name: "x" data_type: TYPE_FP32 dims: [ 3 ] }}
input {{ name: "tag" data_type: TYPE_STRING dims: [ 1 ] optional: true }}
output {{ name: "y" data_type: TYPE_INT64 dims: [ -1 ] }}
"""
MODEL = "class TritonPythonModel:\n    def execute(self, requests):\n        return []\n"


def write_gguf(path: Path, *, context: int = 256, architecture: str = "llama") -> Path:
    """A GGUF file with a llama's header, a vocabulary of ten and one tensor of 4 KiB."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(context)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_block_count(2)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"t{index}" for index in range(10)])
    writer.add_tensor("token_embd.weight", np.zeros((16, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_python(root: Path, *, batch: int = 0, config: str = CONFIG, model: str = MODEL) -> Path:
    """A directory as Triton's Python backend wants it."""
    (root / "1").mkdir(parents=True)
    (root / "config.pbtxt").write_text(config.format(batch=batch))
    (root / "1" / "model.py").write_text(model)
    return root


def onnx_bytes() -> bytes:
    """y = x @ [[1, 2], [3, 4], [5, 6]]; x FP32 [batch, 3]. The fields are those of onnx.proto."""
    weights = struct.pack("<6f", 1, 2, 3, 4, 5, 6)
    initializer = _number(1, 3) + _number(1, 2) + _number(2, 1) + _bytes(8, b"w") + _bytes(9, weights)
    node = _bytes(1, b"x") + _bytes(1, b"w") + _bytes(2, b"y") + _bytes(4, b"MatMul")
    graph = _bytes(1, node) + _bytes(2, b"g") + _bytes(5, initializer)
    graph += _bytes(11, _value(b"x", 3)) + _bytes(12, _value(b"y", 2))
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, _bytes(1, b"") + _number(2, 17))


def _value(name: bytes, width: int) -> bytes:
    shape = _bytes(1, _bytes(2, b"batch")) + _bytes(1, _number(1, width))
    return _bytes(1, name) + _bytes(2, _bytes(1, _number(1, 1) + _bytes(2, shape)))


def _number(field: int, value: int) -> bytes:
    return bytes([field << 3, value])


def _bytes(field: int, value: bytes) -> bytes:
    length = bytes([len(value)]) if len(value) < 128 else bytes([len(value) & 127 | 128, len(value) >> 7])
    return bytes([field << 3 | 2]) + length + value
