"""The process that workers are forked from: `python -m training.zygote FOLDER`, one on a node while jobs train there.

It imports what the worker in that folder needs, which takes seconds, and ends when its standard input does: its agent
is gone then, and the workers live on. JSON, a line each, on its standard input:

    {"folder": PATH, "environ": {...}}   a process for the worker of a folder, with just these variables
    {"go": PID}                          that process begins: what holds it back has been applied to it
    {"drop": PID}                        that process ends without having begun

and on its standard output:

    {"ready": WHY}                       once; empty when it can be forked from, else why not, and it ends
    {"pid": PID}                         for each folder, in turn; 0 when there can be no process
    {"pid": PID, "status": STATUS}       that process has ended: its exit code, negative for a signal
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_GPUS = ("/dev/nvidia-uvm", "/dev/kfd")
"""What a process opens that initialises CUDA or ROCm, which then cannot be used after a fork."""


def main() -> None:
    """Imports, forks what it is told to, and in each child is the worker that was asked for."""
    # NumPy's would start its threads at once; and a library that only asks for a GPU must not open it.
    os.environ.update(OPENBLAS_NUM_THREADS="1", PYTORCH_NVML_BASED_CUDA_CHECK="1")
    said = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer
    from training.contract import read_task
    from training.run.preload import preload

    preload(read_task(Path(sys.argv[1])))
    zygote = Zygote(said)
    why = unfit()
    zygote.say(ready=why)
    if not why:
        gc.collect()
        gc.freeze()  # a collection in a child would write to, and so copy, every page of what was imported
        if (worker := zygote.serve()) is not None:
            become(worker)


def unfit() -> str:
    """Why no process can be forked from this one; empty when it can be done."""
    if (threads := len(list(Path("/proc/self/task").iterdir()))) > 1:
        return f"{threads} threads run in it, and a fork copies only one"
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one of the listing itself
            if (opened := str(descriptor.readlink())).startswith(_GPUS):
                return f"it has {opened} open, and a GPU cannot be used after a fork"
    return ""


@dataclass
class Zygote:
    """Forks processes; without a thread, and all that it waits for in one place."""

    said: int
    """Descriptor of what it says."""
    waiting: dict[int, socket.socket] = field(default_factory=dict)
    """By pid, the way to each process that has not begun. It ends when this is closed, so also with this process."""

    def say(self, **what: int | str) -> None:
        """Writes one line, whole."""
        os.write(self.said, json.dumps(what).encode() + b"\n")

    def serve(self) -> dict[str, Any] | None:
        """Until there is nothing more to come: None. In each child that begins: what was asked for."""
        woken, wake = os.pipe()
        os.set_blocking(woken, False)
        os.set_blocking(wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)  # else nothing is written to the pipe
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        own, begun = (woken, wake, self.said), b""
        while True:
            readable, _, _ = select.select([0, woken], [], [])
            if woken in readable:
                os.read(woken, 4096)
                self._reap()
            if 0 not in readable:
                continue
            if not (read := os.read(0, 1 << 16)):
                return None
            *lines, begun = (begun + read).split(b"\n")
            for line in lines:
                told: dict[str, Any] = json.loads(line)
                if self._obey(told, own):
                    return told

    def _obey(self, told: dict[str, Any], own: tuple[int, ...]) -> bool:
        """Does what it is told; whether this is the child that was asked for, and it has begun."""
        if "folder" in told:
            return self._fork(own)
        if (way := self.waiting.pop(int(told.get("go") or told["drop"]), None)) is not None:
            with way, contextlib.suppress(OSError):  # it was killed while it waited
                way.send(b"." if "go" in told else b"")
        return False

    def _fork(self, own: tuple[int, ...]) -> bool:
        try:
            way, back = socket.socketpair()
            pid = os.fork()
        except OSError:
            self.say(pid=0)
            return False
        if pid:
            back.close()
            way.recv(1)  # it leads a group of its own, by which it can be ended
            self.waiting[pid] = way
            self.say(pid=pid)
            return False
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for descriptor in own:
            os.close(descriptor)
        for other in (way, *self.waiting.values()):
            other.close()
        os.setsid()
        with back:
            back.send(b".")
            if not back.recv(1):
                os._exit(0)
        return True

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = found
                if (way := self.waiting.pop(pid, None)) is not None:
                    way.close()
                self.say(pid=pid, status=os.waitstatus_to_exitcode(status))


def become(told: dict[str, Any]) -> None:
    """Is the worker of `folder` with just the variables `environ`, as if it had been started as one."""
    from training.process import run
    from training.run.preload import settle
    from training.worker import work

    folder, environ = Path(told["folder"]), told["environ"]
    os.environ.clear()
    os.environ.update(environ)
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.chdir(folder)
    sys.argv[1:] = [str(folder)]
    settle(int(environ.get("OMP_NUM_THREADS", 1)))
    run(work, [str(folder)])


if __name__ == "__main__":
    main()
