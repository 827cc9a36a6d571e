"""Real files of every format, under names that say nothing, are found to be what they are."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError, PreconditionError
from tests.unit.training import makers
from training.findings import BASE_BYTES, OVERHEAD
from training.formats import hdf5
from training.identify import dangers, identify


def specs(found: registry_pb2.Identification) -> list[tuple[str, str, list[int]]]:
    return [
        (one.name, registry_pb2.DataType.Name(one.data_type)[10:], list(one.shape))
        for one in (*found.signature.inputs, *found.signature.outputs)
    ]


@pytest.mark.parametrize("legacy", [False, True])
def test_state_dict(tmp_path: Path, legacy: bool) -> None:
    found = identify(makers.state_dict(tmp_path / "file", legacy=legacy))
    assert (found.format, found.framework, found.family) == ("state_dict", "pytorch", "convolutional")
    assert found.parameters == makers.PARAMETERS
    assert dict(found.data_types) == {"FP32": makers.PARAMETERS}
    assert not found.warnings


def test_tied_weights_count_once_and_types_are_told_apart(tmp_path: Path) -> None:
    weight = torch.zeros(8, 4, dtype=torch.bfloat16)
    torch.save({"a": weight, "b": weight, "c": torch.zeros(3, dtype=torch.int64)}, tmp_path / "file")
    assert dict(identify(tmp_path / "file").data_types) == {"BF16": 32, "INT64": 3}


@pytest.mark.parametrize(
    ("module", "family"),
    [
        (torch.nn.TransformerEncoderLayer(8, 2), "transformer"),
        (torch.nn.LSTM(4, 3), "recurrent"),
        (torch.nn.Linear(4, 3), "linear"),
        (torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1)), "feed-forward"),
        (torch.nn.Sequential(torch.nn.Conv1d(4, 3, 5), torch.nn.BatchNorm1d(3)), "convolutional"),
    ],
)
def test_the_family_shows_in_names_and_shapes(tmp_path: Path, module: torch.nn.Module, family: str) -> None:
    found = identify(makers.state_dict(tmp_path / "file", module=module))
    assert found.family == family
    assert found.parameters == sum(tensor.numel() for tensor in module.state_dict().values())


def test_a_whole_module_is_no_state_dict_and_dangerous(tmp_path: Path) -> None:
    torch.save(makers.Small(), tmp_path / "file")
    found = identify(tmp_path / "file")
    assert found.architecture == "Small"
    assert found.parameters == makers.PARAMETERS
    assert any("tests.unit.training.makers.Small" in text for text in dangers(found))
    assert any("not a state dict" in text for text in found.warnings)


def test_torchscript(tmp_path: Path) -> None:
    found = identify(makers.torchscript(tmp_path / "file"))
    assert (found.format, found.architecture, found.family) == ("torchscript", "Small", "convolutional")
    assert found.parameters == makers.PARAMETERS
    assert not found.warnings


def test_torch_export(tmp_path: Path) -> None:
    found = identify(makers.exported(tmp_path / "file"))
    assert (found.format, found.architecture, found.family) == ("torch_export", "Small", "convolutional")
    assert found.parameters == makers.PARAMETERS
    assert specs(found) == [("image", "FP32", [-1, 3, 8, 8]), ("add", "FP32", [-1, 2])]
    assert not found.warnings


def test_safetensors(tmp_path: Path) -> None:
    found = identify(makers.safetensors(tmp_path / "file"))
    assert (found.format, found.framework, found.family) == ("safetensors", "pytorch", "transformer")
    assert dict(found.data_types) == {"BF16": 64, "FP32": 128}


def test_gguf(tmp_path: Path) -> None:
    found = identify(makers.gguf(tmp_path / "file"))
    assert (found.format, found.framework) == ("gguf", "llama.cpp")
    assert (found.architecture, found.family) == ("llama", "transformer")
    assert dict(found.data_types) == {"FP32": 128, "Q4_1": 128}


@pytest.mark.parametrize("external", [False, True])
def test_onnx(tmp_path: Path, external: bool) -> None:
    found = identify(makers.onnx(tmp_path / "file", external=external))
    assert (found.format, found.architecture, found.family) == ("onnx", "small", "linear")
    assert found.parameters == 15
    assert specs(found) == [("x", "FP32", [-1, 4]), ("y", "FP32", [-1, 3])]
    assert not found.warnings


def test_onnx_whose_weights_are_elsewhere_or_gone(tmp_path: Path) -> None:
    path = makers.onnx(tmp_path / "file", external=True)
    (tmp_path / "weights.bin").write_bytes(b"short")
    assert "cut short" in identify(path).warnings[0]
    (tmp_path / "weights.bin").unlink()
    assert "missing" in identify(path).warnings[0]


def test_keras_h5() -> None:
    found = identify(makers.DATA / "tiny.h5")
    assert (found.format, found.architecture, found.family) == ("keras_h5", "Sequential", "convolutional")
    assert found.parameters == 122
    assert specs(found) == [("image", "FP32", [-1, 8, 8, 3])]
    assert not found.warnings


@pytest.mark.parametrize(
    ("name", "architecture", "family", "parameters"),
    [("tiny.keras", "Sequential", "convolutional", 122), ("seq.keras", "Functional", "recurrent", 140)],
)
def test_keras(name: str, architecture: str, family: str, parameters: int) -> None:
    found = identify(makers.DATA / name)
    assert (found.format, found.framework) == ("keras", "keras")
    assert (found.architecture, found.family, found.parameters) == (architecture, family, parameters)
    assert not found.warnings


def test_saved_model() -> None:
    found = identify(makers.DATA / "saved_model")
    assert (found.format, found.framework, found.family) == ("saved_model", "tensorflow", "convolutional")
    assert found.parameters == 122
    assert specs(found) == [("image", "FP32", [-1, 8, 8, 3]), ("output_0", "FP32", [-1, 2])]
    assert not found.warnings


def test_a_saved_model_without_its_variables_says_so(tmp_path: Path) -> None:
    shutil.copy(makers.DATA / "saved_model" / "saved_model.pb", tmp_path)
    assert "variables are missing" in identify(tmp_path).warnings[0]


@pytest.mark.parametrize("protocol", range(6))
def test_scikit_learn_in_pickles(tmp_path: Path, protocol: int) -> None:
    found = identify(makers.pickled(tmp_path / "file", makers.forest(), protocol))
    assert (found.format, found.architecture, found.family) == ("sklearn", "RandomForestClassifier", "trees")
    assert specs(found) == [("X", "FP64", [-1, 4]), ("y", "BYTES", [-1]), ("probabilities", "FP64", [-1, 3])]
    assert found.data_types["V64"] == sum(tree.tree_.node_count for tree in makers.forest().estimators_)
    assert not dangers(found)


@pytest.mark.parametrize("compress", [0, 3, ("gzip", 3), ("bz2", 3), ("xz", 3), ("lzma", 3)])
def test_scikit_learn_in_joblib_dumps(tmp_path: Path, compress: object) -> None:
    found = identify(makers.dumped(tmp_path / "file", makers.pipeline(), compress))
    assert (found.format, found.architecture, found.family) == ("sklearn", "Pipeline", "linear")
    assert specs(found) == [("X", "FP64", [-1, 4]), ("y", "INT64", [-1]), ("probabilities", "FP64", [-1, 3])]
    assert not dangers(found)


def test_a_regressor_has_one_output(tmp_path: Path) -> None:
    found = identify(makers.dumped(tmp_path / "file", makers.ridge()))
    assert (found.family, specs(found)) == ("linear", [("X", "FP64", [-1, 4]), ("y", "FP64", [-1])])
    assert found.requirements.gpu_memory_bytes == 0


def test_arrays_of_objects_are_followed(tmp_path: Path) -> None:
    found = identify(makers.dumped(tmp_path / "file", {"model": makers.ridge(), "o": np.array([{1: 2}, "x"], object)}))
    assert found.format == "sklearn"
    assert not dangers(found)


def test_text_and_other_files(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("c\nHello, wörld.\n" * 5000)
    (tmp_path / "other").write_bytes(bytes(range(256)))
    assert identify(tmp_path / "text").format == "text"
    other = identify(tmp_path / "other")
    assert other.format == "unknown"
    assert list(other.warnings) == ["no known format begins with the bytes 00 01 02 03 04 05 06 07"]


def test_numpy_arrays_and_archives_of_them(tmp_path: Path) -> None:
    np.save(tmp_path / "plain.npy", np.zeros((3, 4), np.float32))
    np.savez(tmp_path / "both.npz", x=np.zeros((3, 4), np.float64), y=np.zeros(3, np.int64))
    np.save(tmp_path / "objects.npy", np.array([os.system], object), allow_pickle=True)
    plain, both = identify(tmp_path / "plain.npy"), identify(tmp_path / "both.npz")
    assert (plain.format, plain.parameters, dict(plain.data_types)) == ("numpy", 12, {"FP32": 12})
    assert (both.format, dict(both.data_types)) == ("numpy", {"FP64": 12, "INT64": 3})
    assert not dangers(plain) + dangers(both)
    found = dangers(identify(tmp_path / "objects.npy"))
    assert any("Python objects" in text for text in found)
    assert any("posix.system" in text for text in found)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "plain.npy").read_bytes()[:40])
    with pytest.raises(InvalidInputError, match="cut short"):
        identify(tmp_path / "cut.npy")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="does not exist"):
        identify(tmp_path / "gone")
    with pytest.raises(InvalidInputError, match="is empty"):
        identify(tmp_path)
    (tmp_path / "empty").touch()
    with pytest.raises(InvalidInputError, match="is empty"):
        identify(tmp_path / "empty")


def test_the_estimate_is_the_formula_that_it_states(tmp_path: Path) -> None:
    found = identify(makers.gguf(tmp_path / "file"))
    weights = 128 * 4 + 128 * 5 / 8
    assert found.requirements.memory_bytes == int(weights * OVERHEAD) + BASE_BYTES["llama.cpp"]
    assert found.requirements.gpu_memory_bytes == int(weights * OVERHEAD)


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = makers.safetensors(tmp_path / "file")
    monkeypatch.setitem(sys.modules, "safetensors", None)
    with pytest.raises(PreconditionError, match="needs the package safetensors"):
        identify(path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(PreconditionError, match="needs the package h5py"):
        identify(makers.DATA / "tiny.h5")


def test_a_probe_that_does_not_come_back_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hdf5, "TIMEOUT_S", 0.001)
    with pytest.raises(InvalidInputError, match="took more than"):
        identify(makers.DATA / "tiny.h5")
