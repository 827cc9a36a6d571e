"""What `aimesh up` and `aimesh down` do."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from meshkit import errors
from meshkit.errors import AimeshError, PreconditionError, UnavailableError
from meshkit.process import end_group
from tools.local.keeper import last_lines, rotate_log
from tools.local.leftovers import end_leftovers
from tools.local.record import MeshRecord, Part, make_state_dir, read_record, update_part, write_record
from tools.local.supervisor import Request, run_mesh

Listener = Callable[[MeshRecord], None]
POLL_S = 0.1
STOP_TIMEOUT_S = 60.0
_SUPERVISOR = "supervisor"


def running_as_asked(request: Request) -> MeshRecord | None:
    """The record of a mesh that runs under its supervisor already; None when there is none.

    Raises PreconditionError when it has other nodes or ports than asked for, or is being stopped.
    """
    record = read_record(request.state_dir)
    if record is None or not record.supervised:
        return None
    if record.stopping:
        raise PreconditionError(
            f"the mesh in {request.state_dir} is being stopped",
            hint=f"wait for it with: aimesh down --state-dir {request.state_dir}; then: aimesh up",
            reason="MESH_RUNNING",
        )
    for option, asked, has in (
        ("--nodes", request.nodes, record.layout.nodes),
        ("--port-base", request.port_base, record.layout.port_base),
        ("--coordinators", request.coordinators, record.layout.coordinator_count),
        ("--etcd", request.etcd_members, record.layout.etcd_count),
        ("--tls", request.tls, record.layout.tls),
    ):
        if asked is not None and asked != has:
            raise PreconditionError(
                f"a mesh with {option} {has} runs in {request.state_dir}, not {option} {asked}",
                hint=f"stop it first: aimesh down --state-dir {request.state_dir}",
                reason="MESH_RUNNING",
            )
    return record


def wait_ready(state_dir: Path, listener: Listener) -> MeshRecord:
    """Waits for a mesh that someone else is starting. Raises UnavailableError when it ends instead."""
    while True:
        record = read_record(state_dir)
        if record is None or not record.supervised:
            raise UnavailableError(
                f"the mesh in {state_dir} stopped while it was starting", hint="try again: aimesh up", reason="STOPPED"
            )
        listener(record)
        if record.ready:
            return record
        time.sleep(POLL_S)


def up_foreground(request: Request, listener: Listener) -> None:
    """Runs the mesh in this process until SIGINT or SIGTERM."""
    asyncio.run(run_mesh(request, listener))


def up_detached(request: Request, listener: Listener) -> MeshRecord:
    """Starts a supervisor in a session of its own and returns when the mesh is ready. Raises what it raised."""
    log_file = request.state_dir / "logs" / f"{_SUPERVISOR}.log"
    make_state_dir(request.state_dir)
    rotate_log(log_file)
    with log_file.open("ab") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-m", "tools.local.daemon", str(request.state_dir), json.dumps(request.wishes())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    try:
        answer = _follow(daemon, request.state_dir, listener)
    except KeyboardInterrupt:
        daemon.send_signal(signal.SIGTERM)
        _follow(daemon, request.state_dir, listener)
        raise
    if "error" in answer:
        daemon.wait()
        raise _revive(answer["error"])
    record = read_record(request.state_dir)
    if "ready" not in answer or record is None:
        raise UnavailableError(
            f"the supervisor ended with status {daemon.wait()}:\n" + "\n".join(last_lines(log_file)),
            hint=f"the whole log is in {log_file}",
            reason="START_FAILED",
        )
    return record


def down(state_dir: Path, listener: Listener) -> bool:
    """Stops everything of the mesh, also when its supervisor is gone. Returns whether anything ran."""
    record = read_record(state_dir)
    if record is None:
        return False
    found = record.running
    if record.supervised and record.supervisor is not None:
        os.kill(record.supervisor.pid, signal.SIGTERM)
        record = _follow_stop(state_dir, record, listener)
    found = _end_rest(record, listener) or found
    write_record(record.stopped())
    listener(replace(record, parts=dict.fromkeys(record.parts, Part("stopped"))))
    return found


def _end_rest(record: MeshRecord, listener: Listener) -> bool:
    """Ends what no supervisor looks after. Returns whether there was anything."""

    def tell(name: str, state: str) -> None:
        nonlocal record
        record = update_part(record, name, Part(state))
        listener(record)

    return end_leftovers(record, tell)


def _follow_stop(state_dir: Path, record: MeshRecord, listener: Listener) -> MeshRecord:
    """Watches the supervisor stop; ends it when it takes too long. Gives the last record that named processes."""
    last, deadline = record, time.monotonic() + STOP_TIMEOUT_S
    while record.supervised and time.monotonic() < deadline:
        record = read_record(state_dir) or record
        if record.processes:
            last = record
            listener(record)
        time.sleep(POLL_S)
    if last.supervisor is not None and last.supervised:
        end_group(last.supervisor, grace_s=0.0)
    return last


def _follow(daemon: subprocess.Popen[bytes], state_dir: Path, listener: Listener) -> dict[str, dict[str, str]]:
    """Shows the start's progress until the supervisor says how it went, or ends without a word."""
    assert daemon.stdout is not None
    while not select.select([daemon.stdout], [], [], POLL_S)[0]:
        record = read_record(state_dir)
        if record is not None and record.supervisor is not None and record.supervisor.pid == daemon.pid:
            listener(record)
    line = daemon.stdout.readline()
    record = read_record(state_dir)
    if record is not None:
        listener(record)
    answer: dict[str, dict[str, str]] = json.loads(line or b"{}")
    return answer


def _revive(error: dict[str, str]) -> AimeshError:
    kind: type[AimeshError] = getattr(errors, error["kind"])
    return kind(error["message"], hint=error["hint"], reason=error["reason"])
