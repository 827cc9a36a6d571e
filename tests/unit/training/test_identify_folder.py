"""Directories: shards, the configuration beside them, pickles among other files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from meshkit.errors import InvalidInputError
from tests.unit.training import makers
from training.identify import dangers, identify


def sharded(folder: Path) -> Path:
    makers.safetensors(folder / "model-1.safetensors", **{"h.0.attn.c_attn.weight": torch.zeros(4, 4)})
    makers.safetensors(folder / "model-2.safetensors", **{"h.1.attn.c_attn.weight": torch.zeros(4, 4)})
    (folder / "config.json").write_text(json.dumps({"architectures": ["GPT2LMHeadModel"]}))
    places = {"h.0.attn.c_attn.weight": "model-1.safetensors", "h.1.attn.c_attn.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder


def test_shards_are_one_model(tmp_path: Path) -> None:
    found = identify(sharded(tmp_path))
    assert (found.format, found.architecture, found.family) == ("safetensors", "GPT2LMHeadModel", "transformer")
    assert (found.parameters, list(found.warnings)) == (32, [])


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (sharded(tmp_path) / "model-2.safetensors").unlink()
    found = identify(tmp_path)
    assert found.parameters == 16
    assert "model-2.safetensors" in found.warnings[0]


def test_a_broken_file_beside_a_model_is_a_warning_and_alone_an_error(tmp_path: Path) -> None:
    makers.onnx(tmp_path / "model")
    (tmp_path / "extra").write_bytes(b"GGUF\x03")
    assert any(text.startswith("extra:") for text in identify(tmp_path).warnings)
    (tmp_path / "model").unlink()
    with pytest.raises(InvalidInputError, match="extra"):
        identify(tmp_path)


def test_a_python_model_with_a_pickle_beside_it(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "model.py").write_text("import joblib\n")
    (tmp_path / "config.pbtxt").write_text('backend: "python"\n')
    assert (identify(tmp_path).format, identify(tmp_path).framework) == ("text", "python")
    makers.dumped(tmp_path / "1" / "estimator", makers.ridge())
    assert identify(tmp_path).format == "sklearn"
    makers.pickled(tmp_path / "1" / "other", makers.Small)
    assert dangers(identify(tmp_path)) == [
        "1/other: it needs tests.unit.training.makers.Small at byte 48, which is not known to be harmless: loading it"
        " runs that code"
    ]


def test_links_out_of_the_directory_do_not_lead_round_and_round(tmp_path: Path) -> None:
    makers.onnx(tmp_path / "model")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "broken").symlink_to(tmp_path / "gone")
    assert identify(tmp_path).format == "onnx"
