"""Real model files, made with the libraries that make them."""

from __future__ import annotations

import io
import pickle
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

DATA = Path(__file__).parent / "data"
PARAMETERS = 3 * 4 * 9 + 4 + 4 * 2 + 2 + 2


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)
        self.register_buffer("shift", torch.ones(2))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        given: torch.Tensor = self.head(self.conv(image).mean((2, 3))) + self.shift
        return given


def state_dict(path: Path, *, legacy: bool = False, module: nn.Module | None = None) -> Path:
    torch.save((module or Small()).state_dict(), path, _use_new_zipfile_serialization=not legacy)
    return path


def torchscript(path: Path) -> Path:
    path.write_bytes(_torchscript())
    return path


@cache
def _torchscript() -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Small().eval()), held)
    return held.getvalue()


def exported(path: Path) -> Path:
    path.write_bytes(_exported())
    return path


@cache
def _exported() -> bytes:
    held = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shapes = ({0: torch.export.Dim("batch", min=1, max=64)},)
        torch.export.save(torch.export.export(Small().eval(), (torch.ones(2, 3, 8, 8),), dynamic_shapes=shapes), held)
    return held.getvalue()


def safetensors(path: Path, **tensors: Any) -> Path:
    from safetensors.torch import save_file

    default = {
        "model.layers.0.self_attn.q_proj.weight": torch.zeros(8, 8, dtype=torch.bfloat16),
        "model.embed_tokens.weight": torch.zeros(16, 8),
    }
    save_file(tensors or default, path, metadata={"format": "pt"})
    return path


def gguf(path: Path, rows: int = 4) -> Path:
    import gguf as library

    writer = library.GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "c"])
    writer.add_tensor("token_embd.weight", np.zeros((rows, 32), np.float32))
    packed = library.quants.quantize(np.zeros((rows, 32), np.float32), library.GGMLQuantizationType.Q4_1)
    writer.add_tensor("blk.0.attn_q.weight", packed, raw_dtype=library.GGMLQuantizationType.Q4_1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def onnx(path: Path, *, external: bool = False, operator: str = "Gemm") -> Path:
    import onnx as library
    from onnx import TensorProto, helper, numpy_helper

    weights = [
        numpy_helper.from_array(np.zeros((4, 3), np.float32), "w"),
        numpy_helper.from_array(np.zeros(3, np.float16).astype(np.float32), "b"),
    ]
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w", "b"], ["y"])],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    library.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


@cache
def forest() -> Any:
    from sklearn.ensemble import RandomForestClassifier

    places = np.random.default_rng(0).random((60, 4))
    return RandomForestClassifier(5, random_state=0).fit(places, np.array(["a", "b", "c"])[np.arange(60) % 3])


def ridge() -> Any:
    from sklearn.linear_model import Ridge

    places = np.random.default_rng(0).random((60, 4))
    return Ridge().fit(places, places[:, 0])


@cache
def pipeline() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    places = np.random.default_rng(0).random((60, 4))
    return make_pipeline(StandardScaler(), LogisticRegression()).fit(places, np.arange(60) % 3)


def pickled(path: Path, value: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol))
    return path


def dumped(path: Path, value: Any, compress: Any = 0) -> Path:
    import joblib

    joblib.dump(value, path, compress=compress)
    return path
