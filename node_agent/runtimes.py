"""Which runtimes this node can serve models with, and the version of the library behind each."""

from __future__ import annotations

import platform
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version

LIBRARIES = {
    "llama": ("xllamacpp",),
    "onnx": ("onnxruntime", "onnxruntime-gpu"),
    "torch": ("torch",),
    "embed": ("tokenizers",),
}
"""By runtime, the packages of which any one is what it stands on."""
TRAINING = "training"
"""In the place of a runtime, on nodes that take workers of training jobs: the version of torch that these have."""


def installed_runtimes(version_of: Callable[[str], str] = package_version) -> dict[str, str]:
    """Version of the library that each runtime stands on, by runtime; one whose library is not there is left out.

    Models with the runtime `python` stand on the interpreter that Triton's Python backend runs them with: this one.
    """
    found = {"python": platform.python_version()}
    for runtime, packages in LIBRARIES.items():
        versions = [version for package in packages if (version := _version(package, version_of))]
        if versions:
            found[runtime] = versions[0]
    return found


def _version(package: str, version_of: Callable[[str], str]) -> str:
    try:
        return version_of(package)
    except PackageNotFoundError:
        return ""
