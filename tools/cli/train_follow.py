"""Following a job to its end: live, line by line, as JSON lines, or without a word until it is over."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Callable

import grpc.aio
from rich.live import Live

from aimesh.training.v1 import training_pb2
from meshkit.errors import AimeshError, PreconditionError, UnavailableError
from tools.cli.client import run
from tools.cli.interrupt import interruptible
from tools.cli.output import console
from tools.cli.target import Mesh
from tools.cli.train_client import AGAIN_S, GONE, follow
from tools.training.status import status_json
from tools.training.view import figure, headline, shown

_PATIENCE_S = 30.0
"""So long may all coordinators be away: a try alone takes 3 s where nothing answers."""
_QUIET_STEPS = 10
"""Where there is no terminal, a line for each tenth of the job."""
View = training_pb2.WatchJobResponse


def follow_live(mesh: Mesh, job: str) -> None:
    """Shows it until its end; lines where there is no terminal. Raises PreconditionError when it failed.

    Exit code 130 after Ctrl-C, which the job does not notice: how it ends is not known.
    """
    seen: list[View] = []
    with interruptible(job, f"aimesh train cancel {job}"):
        run(_lively(mesh, job, seen) if console().is_terminal else _lines(mesh, job, seen))
    check(seen[-1].job)


def follow_json(mesh: Mesh, job: str) -> None:
    """One document a line as it goes on. Exit code 5 when it failed, 130 after Ctrl-C."""
    seen: list[View] = []
    with interruptible(job, f"aimesh train cancel {job}"):
        run(_json(mesh, job, seen))
    if seen[-1].job.state == training_pb2.JOB_STATE_FAILED:
        raise SystemExit(PreconditionError.exit_code)


def follow_quietly(mesh: Mesh, job: str) -> View:
    """The job once it has ended, however. Exit code 130 after Ctrl-C."""
    seen: list[View] = []
    with interruptible(job, f"aimesh train cancel {job}"):
        run(_each(mesh, job, seen, lambda _: None))
    return seen[-1]


def check(job: training_pb2.Job) -> None:
    """Raises PreconditionError for a job that failed."""
    if job.state == training_pb2.JOB_STATE_FAILED:
        raise PreconditionError(
            f"job {job.id} failed: {job.error}", hint=f"see: aimesh train logs {job.id}", reason="JOB_FAILED"
        )


async def _lively(mesh: Mesh, job: str, seen: list[View]) -> None:
    with Live(console=console(), auto_refresh=False) as live:
        await _each(mesh, job, seen, lambda view: live.update(shown(view.job, view.progress), refresh=True))


async def _lines(mesh: Mesh, job: str, seen: list[View]) -> None:
    """A line when its state or reason changes, and for each tenth of its steps."""
    told = ""

    def tell(view: View) -> None:
        nonlocal told
        text, done = headline(view.job).plain, view.progress
        tenth = done.step * _QUIET_STEPS // done.steps if done.steps else 0
        if told != f"{text} {tenth}":
            progress = f"  step {done.step}/{done.steps}, loss {figure(done.loss)}" if done.step else ""
            console().print(f"{text}{progress}", soft_wrap=True)
        told = f"{text} {tenth}"

    await _each(mesh, job, seen, tell)
    console().print(shown(seen[-1].job, seen[-1].progress))


async def _json(mesh: Mesh, job: str, seen: list[View]) -> None:
    def tell(view: View) -> None:
        sys.stdout.write(json.dumps(status_json(view.job, view.progress)) + "\n")
        sys.stdout.flush()

    await _each(mesh, job, seen, tell)


async def _each(mesh: Mesh, job: str, seen: list[View], tell: Callable[[View], None]) -> None:
    async for view in _followed(mesh, job):
        tell(view)
        seen[:] = [view]


async def _followed(mesh: Mesh, job: str) -> AsyncIterator[View]:
    """The stream, taken up again at another coordinator when its own goes away within half a minute."""
    failed_s: float | None = None
    while True:
        try:
            async for view in follow(mesh, job):
                failed_s = None
                yield view
        except (grpc.aio.AioRpcError, UnavailableError) as error:
            failed_s = failed_s or time.monotonic()
            if not _gone(error) or time.monotonic() - failed_s > _PATIENCE_S:
                raise
            await asyncio.sleep(AGAIN_S)
        else:
            return


def _gone(error: grpc.aio.AioRpcError | AimeshError) -> bool:
    return isinstance(error, UnavailableError) or (isinstance(error, grpc.aio.AioRpcError) and error.code() in GONE)
