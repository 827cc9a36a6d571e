"""What an earlier start left in the data directories, and whether it fits the one that comes."""

from __future__ import annotations

import json

from meshkit.errors import DataLossError, PreconditionError
from meshkit.files import write_atomically
from tools.local.layout import ETCD_COUNTS, Layout

_FILE = "etcd.json"
"""In the data directory: whose members' data lies there."""


def check_etcd(layout: Layout) -> None:
    """Raises PreconditionError when etcd's data is of other members than this layout's.

    Members are written in the data of each, several of them with their ports; a lone one may change its ports.
    """
    members, port_base = _found(layout)
    if members is None:
        return
    place = layout.state_dir / "data"
    if members != layout.etcd_count:
        raise PreconditionError(
            f"etcd's data in {place} belongs to {members} member{'s' if members > 1 else ''}, not {layout.etcd_count}",
            hint=f"go on with --etcd {members}; or start a new mesh, to push and deploy there again: "
            f"aimesh up --etcd {layout.etcd_count} --state-dir DIR",
            reason="ETCD_MEMBERS",
        )
    if members > 1 and port_base not in (None, layout.port_base):
        raise PreconditionError(
            f"etcd's data in {place} belongs to members at ports from {port_base} on, not {layout.port_base}",
            hint=f"go on with --port-base {port_base}; a mesh with --etcd 1 may change its ports",
            reason="ETCD_MEMBERS",
        )


def prepare_data(layout: Layout) -> None:
    """Remembers whose data this is, and brings together what coordinators that are no more have kept."""
    (layout.state_dir / "data").mkdir(exist_ok=True)
    value = {"members": layout.etcd_count, "port_base": layout.port_base}
    write_atomically(layout.state_dir / "data" / _FILE, json.dumps(value).encode())
    _take_over_blobs(layout)


def _found(layout: Layout) -> tuple[int | None, int | None]:
    """How many members have data here, None when none has, and the base of their ports where that is known."""
    for count in reversed(ETCD_COUNTS):
        last = Layout(layout.state_dir, layout.port_base, 1, etcd_count=count).etcd_names[-1]
        if (layout.data_dir(last) / "member").exists():
            return count, _known_base(layout)
    return None, None


def _known_base(layout: Layout) -> int | None:
    path = layout.state_dir / "data" / _FILE
    try:
        return int(json.loads(path.read_text())["port_base"])
    except FileNotFoundError:  # of a mesh that never had several members
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DataLossError(
            f"{path} is damaged: {error!r}", hint="remove it, and start with the --port-base of the last time"
        ) from None


def _take_over_blobs(layout: Layout) -> None:
    """Moves the blobs of coordinators that are no more to the first one: each lies on two of them only."""
    first = layout.data_dir(layout.coordinator_names[0])
    kept = {layout.data_dir(name) for name in layout.coordinator_names}
    (first / "blobs").mkdir(parents=True, exist_ok=True)
    for old in set((layout.state_dir / "data").glob("coordinator*")) - kept:
        for blob in (old / "blobs").glob("*"):
            blob.replace(first / "blobs" / blob.name)
