"""Says what a model file or directory is, by its content alone, without loading, running or unpickling any of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from aimesh.registry.v1 import registry_pb2
from meshkit.errors import InvalidInputError
from training.findings import DANGER, Findings, to_identification
from training.formats import (
    gguf_file,
    hdf5,
    keras_file,
    numpy_file,
    onnx_file,
    pickle_file,
    safetensors_file,
    saved_model,
    torch_zip,
    zips,
)
from training.formats.bounded import Window, open_window, printable
from training.formats.folder import files_of, told_by

# Of several files in a directory, the first of these formats is the model; the rest goes with it.
_ORDER = (
    "saved_model", "safetensors", "gguf", "onnx", "torch_export", "torchscript", "keras", "keras_h5", "state_dict",
    "sklearn", "numpy", "unknown", "text",
)  # fmt: skip
_SHARDED = ("safetensors", "gguf", "state_dict")
_TEXT_BYTES = 1 << 16


def identify(path: Path) -> registry_pb2.Identification:
    """What a file or a directory is: format, architecture, parameters, types, inputs, outputs, needs, and warnings.

    Names and extensions say nothing here, but for the JSON files that belong to a directory. A warning that begins
    with `dangerous: ` says that loading the file can run code. Raises InvalidInputError for a path that is not there,
    and for a file that is surely of a format but cut short, inconsistent or made to exhaust its reader.
    """
    return to_identification(look_into(path))


def look_into(path: Path) -> Findings:
    """The same with every tensor's name and shape. Raises what identify raises."""
    if not path.exists():
        raise InvalidInputError(f"{path} does not exist", reason="PATH_MISSING")
    return _of_folder(path) if path.is_dir() else _explained(path, _of_file(path))


def dangers(found: registry_pb2.Identification) -> list[str]:
    """The warnings that say that loading can run code, without their mark."""
    return [text.removeprefix(DANGER) for text in found.warnings if text.startswith(DANGER)]


def _of_file(path: Path) -> Findings:
    if not path.is_file():
        raise InvalidInputError(f"{path} is neither a file nor a directory")
    with open_window(path) as window:
        if not window.size:
            raise InvalidInputError(f"{path} is empty", hint="name the model's files", reason="EMPTY")
        return _by_mark(path, window) or _by_structure(path, window)


def _explained(path: Path, found: Findings) -> Findings:
    """Says why a file is not known; beside a model, other files need no reason."""
    if found.format == "text":
        return found.warn("a text, not a model")
    if found.format != "unknown" or found.warnings:
        return found
    with open_window(path) as window:
        return found.warn(f"no known format begins with the bytes {window.head(8).hex(' ')}")


def _by_mark(path: Path, window: Window) -> Findings | None:
    """Formats with a sure beginning."""
    if gguf_file.recognises(window):
        return gguf_file.read(window)
    if safetensors_file.recognises(window):
        return safetensors_file.read(window, path)
    if window.head(len(hdf5.MAGIC)) == hdf5.MAGIC:
        return keras_file.read_h5(window, path)
    if window.head(len(numpy_file.MAGIC)) == numpy_file.MAGIC:
        return numpy_file.read(window, path.name)
    if window.head(len(zips.MAGIC)) == zips.MAGIC:
        return _of_zip(path)
    return None


def _of_zip(path: Path) -> Findings:
    with zips.open_archive(path) as archive:
        if torch_zip.is_torch(torch_zip.records(archive)):
            return torch_zip.read(archive)
        if keras_file.is_keras(archive):
            return keras_file.read_zip(archive, path)
        if numpy_file.is_archive(archive):
            return numpy_file.read_archive(archive)
        return Findings("unknown").warn(f"a zip archive of {len(archive.members)} files: unpack it to look into it")


def _by_structure(path: Path, window: Window) -> Findings:
    """Formats that only their whole structure gives away."""
    if saved_model.recognises(window):
        return saved_model.read(window, path)
    if onnx_file.recognises(window):
        return onnx_file.read(window, path)
    pickled = pickle_file.read(path, window)
    if pickled is not None:
        return pickled
    return Findings("text" if _is_text(window.head(_TEXT_BYTES)) else "unknown")


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 (a character may be cut at the end) without control characters."""
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if len(head) < _TEXT_BYTES or error.start < len(head) - 3:
            return False
        text = head[: error.start].decode()
    return not any(character < " " and character not in "\t\n\r\f" for character in text)


def _of_folder(folder: Path) -> Findings:
    files = files_of(folder)
    if not files:
        raise InvalidInputError(f"{folder} is empty", hint="name the model's files", reason="EMPTY")
    found, errors = _each(folder, files)
    known = [one for _, one in found if one.format not in ("unknown", "text")]
    if errors and not known:
        raise errors[0]
    main = min((one for _, one in found), key=lambda one: (_ORDER.index(one.format), -_size(one)))
    if main.format in _SHARDED:
        main = _joined(main, known)
    told = told_by(files)
    if told.architecture:
        main = replace(main, architecture=told.architecture)
    if main.format in ("text", "unknown") and any(path.name == "model.py" for path in files):
        main = replace(main, framework="python")
    return replace(main, warnings=()).warn(*_warnings(found), *(str(error) for error in errors), *told.warnings)


def _each(folder: Path, files: list[Path]) -> tuple[list[tuple[str, Findings]], list[InvalidInputError]]:
    """What each file is; errors name the file."""
    found, errors = [], []
    for path in files:
        name = printable(path.relative_to(folder).as_posix())
        if path.stat().st_size == 0 or "variables" in path.parts[-2:-1]:
            continue  # TensorFlow's variables belong to the saved_model.pb above them
        try:
            found.append((name, _of_file(path)))
        except InvalidInputError as error:
            named = error.message if path.name in error.message else f"{name}: {error.message}"
            errors.append(InvalidInputError(named, hint=error.hint, reason=error.reason))
    if not found and not errors:
        raise InvalidInputError(f"{folder} is empty", hint="name the model's files", reason="EMPTY")
    return found, errors


def _warnings(found: list[tuple[str, Findings]]) -> Iterable[str]:
    """Each file's, with its name, where there are several."""
    for name, one in found:
        for text in one.warnings:
            mark = DANGER if text.startswith(DANGER) else ""
            yield f"{mark}{name}: {text.removeprefix(DANGER)}"


def _joined(main: Findings, known: list[Findings]) -> Findings:
    """One model of all shards: files of the main one's format. A tensor that is in several counts once."""
    shards = [one for one in known if one.format == main.format]
    tensors = {(tensor.name, tensor.shape): tensor for one in shards for tensor in one.tensors}
    return replace(main, tensors=tuple(tensors.values()))


def _size(found: Findings) -> int:
    return sum(tensor.count for tensor in found.tensors)
