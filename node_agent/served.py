"""What Triton serves and has passed its test, on disk: <data_dir>/served.json, for the agent that comes after.

Triton itself says with which key a model was loaded (`modelconfig.KEY`); this says that the key's test was passed.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version as package_version
from pathlib import Path

import structlog

from meshkit.files import write_atomically
from meshkit.process import ProcessId
from node_agent.gpuchoice import GpuShare

log = structlog.get_logger()


@dataclass(frozen=True)
class Served:
    """One model that answers."""

    key: str
    gpu: GpuShare | None
    stubs: frozenset[ProcessId]
    """Its processes; none for a backend that runs inside Triton."""
    digests: frozenset[str] = frozenset()
    """Of its files."""
    environment: str = ""
    """What it passed its test in: see `environment`."""
    files: Mapping[str, str] = field(default_factory=dict)
    """sha256 of what is laid out of it, by path; see Repository.manifest."""
    signatures: tuple[tuple[str, str], ...] = ()
    """Key id and signature, in hex, of who vouched for it when it was loaded."""


def environment() -> str:
    """What models run in. With another NumPy, Triton's Python backend may give wrong answers without failing."""
    return f"Python {sys.version}, NumPy {package_version('numpy')}"


class ServedRecord:
    """The models that answer, by name. Blocks on the disk; a full disk is logged, and costs a later agent a reload."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / "served.json"
        self._served = _read(self._path)

    def get(self, name: str) -> Served | None:
        """What was recorded of a model."""
        return self._served.get(name)

    def all(self) -> dict[str, Served]:
        """All that is recorded, by name."""
        return dict(self._served)

    def put(self, name: str, served: Served) -> None:
        """Records that a model answers, in place of what was recorded before."""
        self._served[name] = served
        self._write()

    def keep(self, names: Collection[str]) -> None:
        """Forgets all others."""
        if not self._served.keys() <= set(names):
            self._served = {name: served for name, served in self._served.items() if name in names}
            self._write()

    def forget(self, name: str) -> None:
        """Forgets a model; no error when it is not there."""
        if self._served.pop(name, None) is not None:
            self._write()

    def _write(self) -> None:
        document = {
            name: {
                "key": served.key,
                "gpu": _plain(served.gpu),
                "stubs": [asdict(stub) for stub in served.stubs],
                "digests": sorted(served.digests),
                "environment": served.environment,
                "files": dict(served.files),
                "signatures": served.signatures,
            }
            for name, served in self._served.items()
        }
        try:
            write_atomically(self._path, json.dumps(document).encode())
        except OSError as error:
            log.warning("served.not_recorded", reason=str(error))


def _plain(gpu: GpuShare | None) -> dict[str, int] | None:
    return asdict(gpu) if gpu is not None else None


def _read(path: Path) -> dict[str, Served]:
    try:
        document = json.loads(path.read_text())
        return {
            name: Served(
                key=str(found["key"]),
                gpu=GpuShare(**found["gpu"]) if found["gpu"] else None,
                stubs=frozenset(ProcessId(**stub) for stub in found["stubs"]),
                digests=frozenset(str(digest) for digest in found["digests"]),
                environment=str(found["environment"]),
                files={str(path): str(digest) for path, digest in found.get("files", {}).items()},
                signatures=tuple((str(key_id), str(text)) for key_id, text in found.get("signatures", ())),
            )
            for name, found in document.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}  # nothing there, or nothing of ours: the models are loaded anew
