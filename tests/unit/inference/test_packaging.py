from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from inference.packaging import Package, package
from inference.signature import describe
from meshkit.errors import InvalidInputError
from tests.unit.inference.samples import CONFIG, onnx_bytes, write_gguf, write_python


def pack(path: Path, runtime: str | None = None, **parameters: str) -> Package:
    return package(path, "m", "1.0.0", runtime, parameters)


def shapes(packed: Package) -> tuple[list[str], list[str]]:
    signature = packed.version.signature
    return [describe(spec) for spec in signature.inputs], [describe(spec) for spec in signature.outputs]


def test_a_gguf_file_is_llama_whatever_its_name(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "weights.bin")
    packed = pack(path, n_ctx="128", n_parallel="2")
    version = packed.version
    assert (version.name, version.version, version.runtime) == ("m", "1.0.0", "llama")
    assert version.signature.decoupled
    assert dict(version.parameters) == {
        "entry": "weights.bin",
        "n_ctx": "128",
        "n_parallel": "2",
        "n_batch": "2048",
        "n_ubatch": "512",
    }
    assert json.loads(version.self_test)["inputs"][0]["name"] == "text_input"
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert [(file.path, file.digest, file.size) for file in version.files] == [
        ("weights.bin", digest, path.stat().st_size)
    ]
    assert packed.paths == {digest: path}


def test_a_llama_needs_memory_for_its_file_and_for_every_slots_context(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    needs = [
        pack(path, n_ctx=str(context), n_parallel=str(slots)).version.requirements.memory_bytes
        for context, slots in ((128, 1), (256, 1), (256, 2))
    ]
    # 2 layers x 2 heads x 16 wide x key and value x 2 bytes a token; 10 words of 4 bytes a slot.
    assert needs[1] - needs[0] == 128 * 2 * 2 * 16 * 2 * 2
    assert needs[2] - needs[1] == 256 * 2 * 2 * 16 * 2 * 2 + 10 * 4


def test_layers_on_a_gpu_need_gpu_memory(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    host, gpu = pack(path).version.requirements, pack(path, n_gpu_layers="-1").version.requirements
    assert host.gpu_memory_bytes == 0
    assert gpu.gpu_memory_bytes > path.stat().st_size
    assert gpu.memory_bytes < host.memory_bytes


def test_the_context_is_at_most_what_the_model_was_trained_for(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", context=256)
    assert pack(path).version.parameters["n_ctx"] == "256"
    with pytest.raises(InvalidInputError, match=r"n_ctx = '257'.*16 to 256"):
        pack(path, n_ctx="257")


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_cxt": "1"}, "no parameter 'n_cxt'.*did you mean 'n_ctx'"),
        ({"n_parallel": "0"}, "n_parallel = '0'.*1 to 256"),
        ({"n_threads": "two"}, "n_threads = 'two'"),
        ({"n_batch": "64", "n_ubatch": "128"}, "n_ubatch = 128 is more than n_batch = 64"),
        ({"entry": "x"}, "'entry' is set by the mesh"),
    ],
)
def test_llama_parameters_that_are_refused(tmp_path: Path, parameters: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        pack(write_gguf(tmp_path / "m.gguf"), **parameters)


@pytest.mark.parametrize("cut", [1, 1000, 4096, 4500])
def test_a_gguf_file_that_is_cut_short(tmp_path: Path, cut: int) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(InvalidInputError, match=r"m\.gguf is a GGUF file, but cut short or broken"):
        pack(path)


def test_a_gguf_file_that_is_no_language_model(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + bytes(16))
    with pytest.raises(InvalidInputError, match="without the sizes of a language model"):
        pack(path)


def test_a_directory_with_two_gguf_files(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        write_gguf(tmp_path / name)
    with pytest.raises(InvalidInputError, match=r"exactly one GGUF file is expected, found: a\.gguf, b\.gguf"):
        pack(tmp_path)


def test_only_the_gguf_file_of_a_directory_is_pushed(tmp_path: Path) -> None:
    write_gguf(tmp_path / "a.gguf")
    (tmp_path / "README.md").write_text("read me")
    assert [file.path for file in pack(tmp_path).version.files] == ["a.gguf"]


def test_an_onnx_model_says_its_own_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(onnx_bytes())
    packed = pack(path)
    assert packed.version.runtime == "onnx"
    assert shapes(packed) == (["x FP32 [-1, 3]"], ["y FP32 [-1, 2]"])


@pytest.mark.parametrize("content", [onnx_bytes()[:-20], b"\x08\x08" + b"nonsense" * 9])
def test_an_onnx_model_that_is_broken(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(InvalidInputError, match=r"m\.onnx is not an ONNX model that onnxruntime can run"):
        pack(path)


def test_a_gpu_model_needs_gpu_memory(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(onnx_bytes())
    assert pack(path).version.requirements.gpu_memory_bytes == 0
    assert pack(path, device="cuda").version.requirements.gpu_memory_bytes > 0
    with pytest.raises(InvalidInputError, match=r"device = 'gpu'.*cpu or cuda"):
        pack(path, device="gpu")


@pytest.mark.parametrize(("batch", "first"), [(0, []), (8, [-1])])
def test_a_python_model_says_its_tensors_in_its_configuration(tmp_path: Path, batch: int, first: list[int]) -> None:
    packed = pack(write_python(tmp_path / "any", batch=batch), flavour="sweet")
    assert packed.version.runtime == "python"
    assert packed.version.signature.max_batch_size == batch
    x, tag = packed.version.signature.inputs
    assert (list(x.shape), x.optional, list(tag.shape), tag.optional) == ([*first, 3], False, [*first, 1], True)
    assert [file.path for file in packed.version.files] == ["1/model.py", "config.pbtxt"]
    assert dict(packed.version.parameters) == {"entry": "1/model.py", "flavour": "sweet"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("backend: ", "config.pbtxt does not parse"),
        ('backend: "python" nonsense: 1', "config.pbtxt does not parse"),
        (CONFIG.replace('"python"', '"onnxruntime"'), "names backend 'onnxruntime'"),
        ('backend: "python"', "must list every input and output"),
        (CONFIG.replace("data_type: TYPE_FP32", ""), "'x' has no data_type"),
    ],
)
def test_a_python_models_configuration_that_is_refused(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        pack(write_python(tmp_path / "any", config=config))


@pytest.mark.parametrize(("code", "message"), [("class X(", "not valid Python"), ("x = 1", "no class Triton")])
def test_a_python_models_code_that_is_refused(tmp_path: Path, code: str, message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        pack(write_python(tmp_path / "any", model=code))


def test_a_python_model_is_whole_and_nothing_more(tmp_path: Path) -> None:
    root = write_python(tmp_path / "any")
    (root / "2").mkdir()
    (root / "2" / "model.py").write_text("")
    with pytest.raises(InvalidInputError, match=r"2/model\.py is neither"):
        pack(root)
    (root / "config.pbtxt").unlink()
    with pytest.raises(InvalidInputError, match=r"any has no config\.pbtxt"):
        pack(root)


def test_a_directorys_self_test_is_checked_and_not_pushed(tmp_path: Path) -> None:
    root = write_python(tmp_path / "any")
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1, 2, 3]}]}
    (root / "self_test.json").write_text(json.dumps(request))
    version = pack(root).version
    assert json.loads(version.self_test) == request
    assert "self_test.json" not in [file.path for file in version.files]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "has no inputs"),
        ('{"inputs": [{}]}', r"inputs\[0\] must have"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [3], "data": [1]}]}', "does not fit its datatype and"),
        ('{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}', r"'x' has shape \[1\]"),
        ('{"inputs": [{"name": "z", "datatype": "FP32", "shape": [1], "data": [1]}]}', "unknown input 'z'"),
    ],
)
def test_a_self_test_that_is_refused(tmp_path: Path, document: str, message: str) -> None:
    root = write_python(tmp_path / "any")
    (root / "self_test.json").write_text(document)
    with pytest.raises(InvalidInputError, match=message):
        pack(root)


def test_clutter_is_left_out(tmp_path: Path) -> None:
    root = write_python(tmp_path / "any")
    for name in (".git/config", "1/__pycache__/model.pyc", "1/.model.py.swp"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("x")
    assert [file.path for file in pack(root).version.files] == ["1/model.py", "config.pbtxt"]


def test_a_runtime_that_does_not_fit(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(InvalidInputError, match="holds nothing that runtime onnx can run"):
        pack(path, "onnx")
    with pytest.raises(InvalidInputError, match=r"unknown runtime 'tflite'.*known: embed, llama"):
        pack(path, "tflite")


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="missing does not exist"):
        pack(tmp_path / "missing")
    with pytest.raises(InvalidInputError, match="is empty"):
        pack(tmp_path)
    (tmp_path / "empty.gguf").touch()
    for path in (tmp_path, tmp_path / "empty.gguf"):
        with pytest.raises(InvalidInputError, match="is empty"):
            pack(path)


def test_no_model(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("not a model")
    with pytest.raises(InvalidInputError, match=r"notes\.txt: no known model format"):
        pack(path)


def test_a_name_that_is_not_allowed(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf")
    with pytest.raises(InvalidInputError, match="model name 'A' is not allowed"):
        package(path, "A", "1.0.0")
    with pytest.raises(InvalidInputError, match="version 'one' is not allowed"):
        package(path, "a", "one")
    with pytest.raises(InvalidInputError, match="cannot be stated for runtime llama"):
        package(path, "a", "1.0.0", inputs=["x:FP32:1"])
