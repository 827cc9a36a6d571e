"""HDF5 files by their outline, which a process of its own reads (see h5_probe)."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meshkit.errors import PreconditionError
from training.findings import Tensor
from training.formats import h5_probe
from training.formats.bounded import broken, printable

MAGIC = b"\x89HDF\r\n\x1a\n"
TIMEOUT_S = 60.0
_MOST_ANSWER = 64 << 20
_TYPES = {
    "f2": "FP16", "f4": "FP32", "f8": "FP64", "i1": "INT8", "i2": "INT16", "i4": "INT32", "i8": "INT64",
    "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64", "b1": "BOOL",
}  # fmt: skip


@dataclass(frozen=True)
class Outline:
    """What an HDF5 file says of itself."""

    attributes: dict[str, str]
    datasets: tuple[Tensor, ...]


def read_outline(path: Path, offset: int, size: int) -> Outline:
    """Runs the probe. Raises InvalidInputError when the file is broken or the probe did not survive it."""
    if importlib.util.find_spec("h5py") is None:
        raise PreconditionError("identifying Keras files needs the package h5py", hint="pip install 'aimesh[identify]'")
    command = [sys.executable, h5_probe.__file__, str(path.resolve()), str(offset), str(size)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryFile() as answer, tempfile.TemporaryFile() as complaint:
        try:
            code = subprocess.run(
                command, stdout=answer, stderr=complaint, timeout=TIMEOUT_S, env=environment, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise broken(f"{path.name}: reading its HDF5 structure took more than {TIMEOUT_S:g} s") from None
        if code != 0:
            raise broken(f"{path.name} is an HDF5 file, but broken: {_last_line(complaint) or f'signal {-code}'}")
        answer.seek(0)
        return _outline(json.loads(answer.read(_MOST_ANSWER)))


def _outline(answer: dict[str, Any]) -> Outline:
    tensors = tuple(
        Tensor(name.lstrip("/"), _TYPES.get(code.lstrip("<>|="), code), tuple(shape))
        for name, code, shape in answer["datasets"]
    )
    return Outline(answer["attributes"], tensors)


def _last_line(complaint: Any) -> str:
    complaint.seek(0)
    lines = complaint.read(1 << 16).decode("utf-8", "replace").strip().splitlines()
    return printable(lines[-1], 200) if lines else ""
