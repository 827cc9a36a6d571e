"""Which Triton this directory's agent started, on disk: <data_dir>/triton.json, for the agent that comes after."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from meshkit.files import SECRET, write_atomically
from meshkit.process import ProcessId
from node_agent.certificates import Shown


@dataclass(frozen=True)
class TritonRecord:
    """All that is needed to go on with a Triton that one did not start."""

    process: ProcessId
    fingerprint: str = ""
    """Of the settings and files that it was started with; empty when it cannot be adopted."""
    secret: str = ""
    """What opens its restricted calls."""
    shown: Shown = field(default_factory=Shown)
    """The certificates that it read."""


def write_record(data_dir: Path, record: TritonRecord) -> None:
    """Writes it down, for this user's eyes only. Raises OSError when the disk is full."""
    write_atomically(_path(data_dir), json.dumps(asdict(record)).encode(), SECRET)


def read_record(data_dir: Path) -> TritonRecord | None:
    """What was written last; None when there is nothing, or nothing that an agent of ours wrote."""
    try:
        found = json.loads(_path(data_dir).read_text())
        process = ProcessId(int(found["process"]["pid"]), float(found["process"]["started"]))
        return TritonRecord(process, str(found["fingerprint"]), str(found["secret"]), Shown(**found["shown"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_record(data_dir: Path) -> None:
    """Forgets it; no error when there is none."""
    _path(data_dir).unlink(missing_ok=True)


def _path(data_dir: Path) -> Path:
    return data_dir / "triton.json"
