"""Sends what a job needs to the mesh."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tools.cli.target import Mesh
    from tools.training.pack import Packed


def upload(mesh: Mesh, packed: Packed) -> None:
    """Sends what the mesh lacks, with a bar on standard error when there is something to send."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    from tools.cli.client import run
    from tools.cli.output import progress_console
    from tools.cli.upload import send_blobs

    if not packed.bytes:
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TransferSpeedColumn())
    with Progress(*columns, console=progress_console()) as progress:
        task = progress.add_task(packed.spec.name, total=packed.bytes)
        run(send_blobs(mesh, packed.paths, packed.contents, lambda count: progress.advance(task, count)))
