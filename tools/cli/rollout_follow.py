"""Following a rollout to its end: live, as JSON lines, or without a word until it is over."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import grpc
import grpc.aio
from rich.live import Live

from aimesh.rollout.v1 import rollout_pb2
from meshkit.errors import PreconditionError
from tools.cli.client import run
from tools.cli.interrupt import interruptible
from tools.cli.output import console, print_json
from tools.cli.plain import plain
from tools.cli.rollout_client import follow
from tools.cli.rollout_view import headline, shown
from tools.cli.target import Mesh

_AGAIN_S = 0.5
_MOST_TRIES = 20
_GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def follow_live(mesh: Mesh, name: str) -> None:
    """Shows it until its end; line by line where there is no terminal. Raises PreconditionError when it went back.

    Exit code 130 after Ctrl-C, which the rollout does not notice.
    """
    last: list[rollout_pb2.Rollout] = []
    with interruptible(f"the rollout of {name}", f"aimesh rollout abort {name}"):
        run(_lively(mesh, name, last))
    _check(last[-1])


def follow_json(mesh: Mesh, name: str) -> None:
    """One document a line at each change."""
    with interruptible(f"the rollout of {name}", f"aimesh rollout abort {name}"):
        run(_json(mesh, name))


def follow_quietly(mesh: Mesh, name: str) -> None:
    """Prints it as one JSON document once it is over. Exit code 5 when it went back."""
    last = run(_last(mesh, name))
    print_json(plain(last))
    if last.rollout.state == rollout_pb2.ROLLOUT_STATE_ROLLED_BACK:
        raise SystemExit(PreconditionError.exit_code)


async def _lively(mesh: Mesh, name: str, last: list[rollout_pb2.Rollout]) -> None:
    terminal = console()
    if not terminal.is_terminal:
        async for answer in _followed(mesh, name):
            if not last or headline(last[-1]).plain != headline(answer.rollout).plain:
                terminal.print(headline(answer.rollout))
            last[:] = [answer.rollout]
        return
    with Live(console=terminal, auto_refresh=False, vertical_overflow="visible") as live:
        async for answer in _followed(mesh, name):
            live.update(shown(answer.rollout, answer.comparisons), refresh=True)
            last[:] = [answer.rollout]


async def _json(mesh: Mesh, name: str) -> None:
    async for answer in _followed(mesh, name):
        sys.stdout.write(json.dumps(plain(answer)) + "\n")
        sys.stdout.flush()


async def _last(mesh: Mesh, name: str) -> rollout_pb2.WatchRolloutResponse:
    found = rollout_pb2.WatchRolloutResponse()
    async for answer in _followed(mesh, name):
        found = answer
    return found


async def _followed(mesh: Mesh, name: str) -> AsyncIterator[rollout_pb2.WatchRolloutResponse]:
    """The stream, taken up again at another coordinator when its own goes away."""
    failures = 0
    while True:
        try:
            async for answer in follow(mesh, name):
                failures = 0
                yield answer
        except grpc.aio.AioRpcError as error:
            failures += 1
            if error.code() not in _GONE or failures > _MOST_TRIES:
                raise
            await asyncio.sleep(_AGAIN_S)
        else:
            return


def _check(rollout: rollout_pb2.Rollout) -> None:
    if rollout.state == rollout_pb2.ROLLOUT_STATE_ROLLED_BACK:
        raise PreconditionError(
            f"{rollout.spec.name} was rolled back from {rollout.spec.version}: {rollout.reason}",
            hint=f"see: aimesh rollout status {rollout.spec.name}",
            reason="ROLLED_BACK",
        )
