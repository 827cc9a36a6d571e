"""Processes that are forked for the workers of a node: taken hold of, let begin, ended; their ends are told."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from meshkit.process import ProcessId
from node_agent.training import limits, zygotes
from node_agent.training.environment import argv
from node_agent.training.zygotes import Zygotes
from tests.mesh.node_agent.workers import write_programs
from tests.processes import eventually

PROGRAM = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / "environ").write_text("\\n".join(sorted(os.environ)))
print("began", flush=True)
while not (folder / "stop").exists():
    time.sleep(0.01)
sys.exit(int((folder / "stop").read_text()))
"""


class Site:
    """A zygote in a folder, and the folders of workers."""

    def __init__(self, root: Path) -> None:
        self.package = write_programs(root / "programs") / "training"
        (self.package / "program.py").write_text(PROGRAM)
        self.environ = {"PYTHONPATH": str(self.package.parent), "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "2"}
        self.now = 0.0
        self.zygotes = Zygotes(clock=lambda: self.now)
        self.folder = root / "worker"
        self.folder.mkdir()

    def start(self) -> None:
        self.zygotes.start(argv(sys.executable, "training.zygote", self.folder), self.environ, 7)

    @property
    def pid(self) -> int:
        assert self.zygotes._one is not None
        return self.zygotes._one.process.pid

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.pid).children()


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    made = Site(tmp_path)
    made.start()
    yield made
    (made.folder / "stop").write_text("0")
    await made.zygotes.end()


async def test_a_process_begins_when_it_is_told_to_and_its_end_is_told(site: Site) -> None:
    own = {**site.environ, "RANK": "3"}
    first, second = await asyncio.gather(*(site.zygotes.fork(site.folder, own, 30) for _ in range(2)))
    assert first is not None
    assert second is not None
    assert {child.pid for child in site.children()} == {first.pid, second.pid}
    assert os.getpgid(first.pid) == first.pid
    await asyncio.sleep(0.05)
    assert not (site.folder / "log.txt").exists()
    for forked in (first, second):
        forked.begin()
    await eventually(lambda: (site.folder / "log.txt").exists())
    await eventually(lambda: (site.folder / "log.txt").read_text() == "began\n" * 2)
    assert set((site.folder / "environ").read_text().split()) - {"LC_CTYPE"} == set(own)
    assert psutil.Process(first.pid).nice() == 7
    os.kill(first.pid, signal.SIGKILL)
    await first.told_within(10)
    (site.folder / "stop").write_text("5")
    await second.told_within(10)
    assert (first.returncode, second.returncode) == (-signal.SIGKILL, 5)
    assert site.children() == []


async def test_one_that_nobody_waits_for_any_more_never_begins(site: Site) -> None:
    forked = await site.zygotes.fork(site.folder, site.environ, 30)
    assert forked is not None
    os.kill(site.pid, signal.SIGSTOP)
    asking = asyncio.create_task(site.zygotes.fork(site.folder, site.environ, 30))
    await asyncio.sleep(0.05)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    os.kill(site.pid, signal.SIGCONT)
    forked.begin()
    await eventually(lambda: (site.folder / "log.txt").exists())
    again = await site.zygotes.fork(site.folder, site.environ, 30)
    assert again is not None
    await eventually(lambda: {child.pid for child in site.children()} == {forked.pid, again.pid})
    waits = ProcessId.of(again.pid)
    runs = ProcessId.of(forked.pid)
    await site.zygotes.end()
    await eventually(lambda: not waits.alive())
    assert runs.alive()
    assert (site.folder / "log.txt").read_text().count("began") == 1


async def test_one_that_is_stopped_is_given_up_by_who_looks_after_it(site: Site) -> None:
    forked = await site.zygotes.fork(site.folder, site.environ, 30)
    assert forked is not None
    os.kill(site.pid, signal.SIGSTOP)
    asking = asyncio.create_task(site.zygotes.fork(site.folder, site.environ, 30))
    await eventually(lambda: psutil.Process(site.pid).status() == psutil.STATUS_STOPPED)
    for now in (0.0, limits.STOPPED_S - 1, limits.STOPPED_S):
        assert not asking.done()
        site.now = now
        site.zygotes.look()
        await asyncio.sleep(0)
    assert await asyncio.wait_for(asking, 1) is None


async def test_one_that_does_not_answer_is_given_up_and_the_next_comes_after_a_rest(site: Site) -> None:
    forked = await site.zygotes.fork(site.folder, site.environ, 30)
    assert forked is not None
    forked.begin()
    zygote = ProcessId.of(site.pid)
    os.kill(zygote.pid, signal.SIGSTOP)
    assert await site.zygotes.fork(site.folder, site.environ, 0.1) is None
    await forked.told_within(30)
    assert forked.returncode is None
    await eventually(lambda: not zygote.alive())
    await eventually(lambda: not site.zygotes.due and site.zygotes._one is None)
    assert await site.zygotes.fork(site.folder, site.environ, 30) is None
    site.now = zygotes.REST_S
    assert site.zygotes.due


@pytest.mark.parametrize(
    "code",
    [
        "import threading\ndef preload(task): threading.Thread(target=threading.Event().wait, daemon=True).start()",
        "def preload(task): raise RuntimeError('no such library')",
    ],
    ids=["threads", "import fails"],
)
async def test_one_that_cannot_be_forked_from_is_given_up(tmp_path: Path, code: str) -> None:
    site = Site(tmp_path)
    (site.package / "run" / "preload.py").write_text(code)
    site.start()
    assert await site.zygotes.fork(site.folder, site.environ, 30) is None
    await eventually(lambda: not site.zygotes.due and site.zygotes._one is None)


async def test_what_cannot_be_changed_any_more_is_no_matter_for_a_fork(site: Site) -> None:
    assert await site.zygotes.fork(site.folder, {**site.environ, "LD_LIBRARY_PATH": "/x"}, 30) is None
    assert await site.zygotes.fork(site.folder, {**site.environ, "PYTHONPATH": "/x"}, 30) is None
    assert await site.zygotes.fork(site.folder, {**site.environ, "CUDA_VISIBLE_DEVICES": ""}, 30) is not None
