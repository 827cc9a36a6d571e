"""The life of a one-machine mesh: take the place, end leftovers, start, keep, stop."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from meshkit.errors import DeadlineError, PreconditionError
from meshkit.process import ProcessId
from tools.local.board import Board
from tools.local.children import Child, children, kind_of, stop_order
from tools.local.etcd import etcd_binary
from tools.local.groups import find_error
from tools.local.keeper import Keeper, rotate_log, start_error
from tools.local.kept import check_etcd, prepare_data
from tools.local.layout import FIRST_BASE, Layout, divide
from tools.local.leftovers import end_leftovers
from tools.local.machine import machine_size
from tools.local.pki import ensure_api_key, own_credentials, prepare_identity
from tools.local.ports import claim_any, claim_layout
from tools.local.probes import etcd_answers, probe
from tools.local.record import MeshRecord, Part, make_state_dir, read_record
from tools.local.xds import write_bootstrap

START_TIMEOUT_S = 120.0
POLL_S = 0.1
WATCH_S = 2.0
"""How often a mesh that is ready is looked at."""


@dataclass(frozen=True)
class Request:
    """What `aimesh up` was asked for."""

    state_dir: Path
    nodes: int | None = None
    """None: as many as last time, else 1."""
    port_base: int | None = None
    """None: as last time, else the first free block."""
    coordinators: int | None = None
    """None: as many as last time, else 1."""
    etcd_members: int | None = None
    """None: as many as last time, else 1."""
    tls: bool | None = None
    """None: as last time, else without."""

    def wishes(self) -> dict[str, int | bool | None]:
        """Everything but the directory."""
        return {key: value for key, value in asdict(self).items() if key != "state_dir"}


async def run_mesh(request: Request, listener: Callable[[MeshRecord], None]) -> None:
    """Runs a mesh until SIGTERM, SIGINT or SIGHUP; a second one kills everything. `listener` hears every change.

    Raises PreconditionError when one runs there already, ExhaustedError when a port is taken, UnavailableError or
    DeadlineError when a part does not start; whatever happens, nothing that it started is left behind.
    """
    make_state_dir(request.state_dir)
    binary = etcd_binary()
    with _locked(request.state_dir):
        before = read_record(request.state_dir)
        if before is not None:
            await asyncio.to_thread(end_leftovers, before)
        layout, claimed = await asyncio.to_thread(_take_ports, request, before)
        with claimed:
            await asyncio.to_thread(prepare_data, layout)
            await asyncio.to_thread(prepare_identity, layout)
            plan = children(layout, divide(*machine_size(), layout.nodes), binary)
            _prepare(layout, plan)
            board = Board(MeshRecord(layout, supervisor=ProcessId.of(os.getpid())), listener)
            await _live(layout, plan, board)


async def _live(layout: Layout, plan: list[Child], board: Board) -> None:
    agents = {layout.node_id(index) for index in range(layout.nodes)}
    keepers = {
        child.name: Keeper(
            child, layout.log_file(child.name), board, layout.data_dir(child.name) if child.name in agents else None
        )
        for child in plan
    }
    stop = _stop_on_signals(keepers)
    for name in keepers:
        board.part(name, "waiting")
    try:
        async with asyncio.TaskGroup() as group:
            work = [group.create_task(_keep(layout, keeper)) for keeper in keepers.values()]
            work.append(group.create_task(_watch_parts(layout, board)))
            await stop.wait()
            for task in work:
                task.cancel()
    except BaseExceptionGroup as group:
        raise find_error(group) or group from None
    finally:
        await _stop_all(keepers)
        board.stopped()


async def _keep(layout: Layout, keeper: Keeper) -> None:
    if kind_of(keeper.name) == "coordinator":
        while not await etcd_answers(layout):  # noqa: ASYNC110  # another process's state has no event
            await asyncio.sleep(POLL_S)
    await keeper.run()


async def _watch_parts(layout: Layout, board: Board) -> None:
    """Shows each part become ready, at the start and whenever one was started again. Never returns."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        parts = await probe(board.record)
        for name, part in parts.items():
            if board.record.parts[name].state in ("starting", "ready"):
                board.part(name, part.state, part.message)
        if not board.record.ready and _all_started(layout, parts, late=time.monotonic() > deadline):
            await ensure_api_key(layout)
            board.ready()
        await asyncio.sleep(POLL_S if not board.record.ready else WATCH_S)


def _all_started(layout: Layout, parts: dict[str, Part], *, late: bool) -> bool:
    """Whether every part is ready. Raises when one failed, or when it is too late."""
    failed = [name for name, part in parts.items() if part.state == "failed"]
    missing = [name for name, part in parts.items() if part.state != "ready"]
    if failed:
        raise start_error(failed[0], parts[failed[0]].message, layout.log_file(failed[0]))
    if missing and late:
        error = start_error(missing[0], f"not ready within {START_TIMEOUT_S:.0f} s", layout.log_file(missing[0]))
        raise DeadlineError(error.message, hint=error.hint, reason=error.reason)
    return not missing


async def _stop_all(keepers: dict[str, Keeper]) -> None:
    for names in stop_order(list(keepers)):
        async with asyncio.TaskGroup() as group:
            for name in names:
                group.create_task(keepers[name].stop())


def _stop_on_signals(keepers: dict[str, Keeper]) -> asyncio.Event:
    """An event that the first signal to stop sets; the second kills every child, so that stopping ends at once."""
    stop = asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            for keeper in keepers.values():
                keeper.kill()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop


def _take_ports(request: Request, before: MeshRecord | None) -> tuple[Layout, socket.socket]:
    """The mesh as asked for; what was not asked for is as last time. Raises PreconditionError, ExhaustedError."""
    last = before.layout if before else Layout(request.state_dir, FIRST_BASE, nodes=1)
    wanted = replace(
        last,
        nodes=request.nodes or last.nodes,
        coordinator_count=request.coordinators or last.coordinator_count,
        etcd_count=request.etcd_members or last.etcd_count,
        tls=last.tls if request.tls is None else request.tls,
        port_base=request.port_base or last.port_base,
    )
    _refuse_other_links(wanted, before)
    if before is None and request.port_base is None:
        return claim_any(wanted)
    check_etcd(wanted)
    return wanted, claim_layout(wanted)


def _refuse_other_links(wanted: Layout, before: MeshRecord | None) -> None:
    """etcd's members have stored each other's addresses with the scheme."""
    if before is not None and wanted.tls != before.layout.tls and before.layout.data_dir("etcd").exists():
        raise PreconditionError(
            f"the mesh in {wanted.state_dir} was made {'with' if before.layout.tls else 'without'} --tls",
            hint="go on as before, or start a new mesh, to push and deploy there again: aimesh up --state-dir DIR",
            reason="ETCD_MEMBERS",
        )


def _prepare(layout: Layout, plan: list[Child]) -> None:
    for child in plan:
        layout.data_dir(child.name).mkdir(parents=True, exist_ok=True, mode=0o700)
        layout.log_file(child.name).parent.mkdir(exist_ok=True)
        rotate_log(layout.log_file(child.name))
        if child.config is not None:
            path, text = child.config
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
    write_bootstrap(layout.coordinators, layout.xds_bootstrap, own_credentials(layout))


@contextmanager
def _locked(state_dir: Path) -> Iterator[None]:
    """Holds the directory's lock, which the kernel releases whatever ends this process."""
    with (state_dir / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PreconditionError(
                f"a mesh runs in {state_dir} already", hint="see: aimesh status", reason="MESH_RUNNING"
            ) from None
        yield
