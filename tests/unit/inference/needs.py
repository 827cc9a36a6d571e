"""Skips what a user's machine may lack; in CI, with AIMESH_REQUIRE_ALL=1, nothing may be lacking."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

without_torch = pytest.mark.skipif(
    find_spec("torch") is None and os.environ.get("AIMESH_REQUIRE_ALL") != "1",
    reason="torch is not installed: pip install torch==2.13.0",
)
