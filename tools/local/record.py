"""mesh.json: what a one-machine mesh is and which processes it has, kept so that it survives any kill."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from meshkit.errors import DataLossError, PreconditionError
from meshkit.files import write_atomically
from meshkit.process import ProcessId
from tools.local.layout import Layout

FILE = "mesh.json"


@dataclass(frozen=True)
class Part:
    """How one process of the mesh is."""

    state: str
    """waiting, starting, ready, failed, restarting, stopping or stopped."""
    message: str = ""


@dataclass(frozen=True)
class MeshRecord:
    """A mesh of this machine. Ports and nodes stay recorded when it is down, so that it comes back the same."""

    layout: Layout
    supervisor: ProcessId | None = None
    processes: Mapping[str, ProcessId] = field(default_factory=dict)
    parts: Mapping[str, Part] = field(default_factory=dict)
    ready: bool = False

    @property
    def running(self) -> bool:
        """Whether any process of it is alive."""
        return any(process.alive() for process in self.processes.values()) or self.supervised

    @property
    def supervised(self) -> bool:
        """Whether its supervisor is alive."""
        return self.supervisor is not None and self.supervisor.alive()

    @property
    def stopping(self) -> bool:
        """Whether any part of it has been told to end for good."""
        return any(part.state in ("stopping", "stopped") for part in self.parts.values())

    def stopped(self) -> MeshRecord:
        """The same mesh with nothing running."""
        return MeshRecord(self.layout)


def default_state_dir(environ: Mapping[str, str]) -> Path:
    """$AIMESH_STATE_DIR, else aimesh below $XDG_STATE_HOME or ~/.local/state. Absolute."""
    if named := environ.get("AIMESH_STATE_DIR"):
        return Path(named).absolute()
    home = environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(home).absolute() / "aimesh"


def make_state_dir(state_dir: Path) -> None:
    """Makes the directory. Raises PreconditionError when that cannot be."""
    try:
        (state_dir / "logs").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PreconditionError(
            f"cannot keep a mesh in {state_dir}: {error.strerror}",
            hint="name another place: --state-dir DIR, or $AIMESH_STATE_DIR",
            reason="STATE_DIR",
        ) from None


def read_record(state_dir: Path) -> MeshRecord | None:
    """The record; None when no mesh was ever started there. Raises DataLossError when it is damaged."""
    path = state_dir / FILE
    try:
        return _from_json(state_dir.absolute(), json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(
            f"{path} is damaged: {error!r}",
            hint="end the processes whose command line names this directory, then remove the file",
        ) from None


def write_record(record: MeshRecord) -> None:
    """Replaces the record in one step: readers see the old or the new one, also after a crash."""
    write_atomically(record.layout.state_dir / FILE, json.dumps(_to_json(record), indent=1).encode())


def update_part(record: MeshRecord, name: str, part: Part, process: ProcessId | None = None) -> MeshRecord:
    """The record with one part's state, and its process when that is new."""
    processes = {**record.processes, name: process} if process else record.processes
    return replace(record, parts={**record.parts, name: part}, processes=processes)


def _to_json(record: MeshRecord) -> dict[str, Any]:
    layout = record.layout
    return {
        "port_base": layout.port_base,
        "nodes": layout.nodes,
        "gateway": layout.gateway,
        "coordinators": list(layout.coordinators),
        "coordinator_count": layout.coordinator_count,
        "etcd": list(layout.etcd),
        "etcd_count": layout.etcd_count,
        "tls": layout.tls,
        "ready": record.ready,
        "supervisor": asdict(record.supervisor) if record.supervisor else None,
        "processes": {name: asdict(process) for name, process in record.processes.items()},
        "parts": {name: asdict(part) for name, part in record.parts.items()},
    }


def _from_json(state_dir: Path, value: dict[str, Any]) -> MeshRecord:
    return MeshRecord(
        # A record of an older version says nothing of what it did not have.
        layout=Layout(
            state_dir,
            value["port_base"],
            value["nodes"],
            value.get("coordinator_count", 1),
            value.get("etcd_count", 1),
            value.get("tls", False),
        ),
        supervisor=ProcessId(**value["supervisor"]) if value["supervisor"] else None,
        processes={name: ProcessId(**process) for name, process in value["processes"].items()},
        parts={name: Part(**part) for name, part in value["parts"].items()},
        ready=value["ready"],
    )
