"""A profile from a model's file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from training.analyse.file import profile_of_file


def test_a_file_says_parameters_and_family(tmp_path: Path) -> None:
    weights = {"q_proj.weight": np.zeros((1024, 1024), np.float16), "mlp.weight": np.zeros((64, 1024), np.float16)}
    save_file(weights, tmp_path / "model.safetensors")
    found = profile_of_file(tmp_path / "model.safetensors")
    assert (found.parameters, found.parameter_bytes) == (1088 * 1024, 2 * 1088 * 1024)
    assert (found.size_class, found.family) == ("medium", "transformer")
    assert (found.flops, found.activation_bytes) == (2 * 1088 * 1024, 0)
    assert "model.safetensors" in found.source
