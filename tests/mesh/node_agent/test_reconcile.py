"""Assignments carried out on a real Triton: loads, failures, replacements, deaths."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from aimesh.membership.v1 import membership_pb2
from meshkit.errors import AimeshError
from meshkit.failpoints import Armed
from meshkit.process import ProcessId
from node_agent.modelconfig import adapt_config, python_environment
from node_agent.plan import FAILED, LOADING, READY, UNLOADING
from tests.mesh.node_agent.nodes import Node, running_node
from tests.mesh.node_agent.support import (
    CONFIG,
    COUNTDOWN,
    add_model,
    countdown,
    int32_answer,
    int32_request,
)
from tests.processes import eventually


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    async with running_node(tmp_path) as started:
        yield started


async def test_failures_say_why_and_do_not_touch_the_others(node: Node) -> None:
    blobs = node.coordinator.blobs
    missing = blobs.version("missing", "1.0.0", "not there")
    del blobs[missing.files[0].digest]
    await node.coordinator.assign(
        blobs.version("good", "1.0.0", add_model(1)),
        blobs.version("raises", "1.0.0", add_model(1, before="raise ValueError('no such weights')")),
        blobs.version("killed", "1.0.0", add_model(1, before="__import__('os').kill(__import__('os').getpid(), 9)")),
        blobs.version("wrong", "1.0.0", add_model(1, request="raise RuntimeError('cannot run')")),
        blobs.version("untestable", "1.0.0", add_model(1), self_test="{}"),
        missing,
    )
    for name in ("raises", "killed", "wrong", "untestable", "missing"):
        await node.reaches(name, "1.0.0", FAILED)
    await node.reaches("good", "1.0.0", READY)
    assert node.heard("raises") >= {"ValueError: no such weights"}, "in one line, without a trace"
    assert node.heard("killed") >= {"the model's process was killed, or crashed, while it loaded"}
    assert "cannot run" in node.coordinator.message("wrong")
    assert "KServe v2" in node.coordinator.message("untestable")
    assert "no blob" in node.coordinator.message("missing")
    assert await node.ask("good", 1) == [2]
    with pytest.raises(AimeshError):
        await node.ask("wrong", 1)

    # A failed one is tried again by itself.
    blobs.version("missing", "1.0.0", "not there")
    blobs[missing.files[0].digest] = b"not there"
    await node.coordinator.assign(blobs.version("good", "1.0.0", add_model(1)))
    await eventually(lambda: set(node.coordinator.states()) == {("good", "1.0.0")})
    assert node.stubs("raises") == node.stubs("wrong") == []
    assert [path.name for path in (node.agent.settings.data_dir / "repository").iterdir()] == ["good"]


async def test_a_model_that_kills_triton_as_it_loads_leaves_the_others_alone(node: Node) -> None:
    blobs = node.coordinator.blobs
    good = blobs.version("good", "1.0.0", add_model(1))
    await node.coordinator.assign(good)
    await node.reaches("good", "1.0.0", READY)
    kills = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)"
    await node.coordinator.assign(good, blobs.version("kills", "1.0.0", add_model(1, before=kills)))
    await eventually(lambda: node.tritons_lost("kills") == 2, within_s=120)
    await eventually(lambda: node.answers("good"))
    await node.reaches("good", "1.0.0", READY)
    assert "Triton went away while it loaded kills" in node.coordinator.message("kills")
    assert node.tritons_lost("kills") == 2, "it waits now, and the node serves"


async def test_a_runtimes_template_that_streams(node: Node) -> None:
    template = node.agent.settings.runtimes_dir / "countdown" / "model.py"
    template.parent.mkdir(parents=True)
    template.write_text(COUNTDOWN)
    blobs = node.coordinator.blobs
    await node.coordinator.assign(countdown(blobs, "down", 0), countdown(blobs, "up", -1))
    await node.reaches("down", "1.0.0", READY)
    await node.reaches("up", "1.0.0", FAILED)
    assert node.coordinator.message("up") == "cannot count up"
    responses = await node.agent.triton.client.stream(int32_request("down", 0), 10)
    assert [int32_answer(response) for response in responses if response.outputs] == [[3], [2], [1]]


async def test_a_new_version_replaces_the_old_without_losing_a_request(node: Node) -> None:
    blobs = node.coordinator.blobs
    await node.coordinator.assign(blobs.version("plus", "1.0.0", add_model(1)))
    await node.reaches("plus", "1.0.0", READY)
    await node.coordinator.assign(blobs.version("plus", "2.0.0", add_model(2, before="time.sleep(0.5)")))
    answers = []
    while node.coordinator.states().get(("plus", "2.0.0")) != READY:
        answers.append((await node.ask("plus", 1))[0])
    answers.append((await node.ask("plus", 1))[0])
    assert set(answers) == {2, 3}
    assert answers == sorted(answers)
    assert any(
        {(m.version, m.state) for m in report.models} == {("1.0.0", READY), ("2.0.0", LOADING)}
        for report in node.coordinator.reports
    ), "the old version is reported READY while the new one loads"

    asked = node.blobs.parent / "asked"
    request = f"open('{asked}', 'w').close(); time.sleep(1)"
    slow = blobs.version("plus", "3.0.0", add_model(3, request=request), self_test="")
    await node.coordinator.assign(slow)
    await node.reaches("plus", "3.0.0", READY)
    in_flight = asyncio.create_task(node.ask("plus", 1))
    await eventually(asked.exists)
    await node.coordinator.assign()
    await eventually(lambda: not node.coordinator.states())
    assert await in_flight == [4], "what was in flight is finished before it is unloaded"


async def test_what_dies_comes_back(node: Node) -> None:
    blobs = node.coordinator.blobs
    version = blobs.version("plus", "1.0.0", add_model(1))
    await node.coordinator.assign(version)
    await node.reaches("plus", "1.0.0", READY)

    (stub,) = node.stubs("plus")
    triton_pid = node.agent.triton.status.pid
    stub.kill()
    await node.reaches("plus", "1.0.0", FAILED)
    assert "process of the model died" in node.coordinator.message("plus")
    await node.reaches("plus", "1.0.0", READY)
    assert await node.ask("plus", 1) == [2]
    assert node.agent.triton.status.pid == triton_pid

    # A byte flips on disk: noticed at the next load, and fetched again.
    blob = node.blobs / version.files[0].digest
    content = blob.read_bytes()
    blob.chmod(0o644)
    blob.write_bytes(content.replace(b"+ 1", b"+ 9"))
    downloads = len(node.coordinator.downloads)
    stubs = node.stubs("plus")
    seen = len(node.coordinator.reports)
    os.kill(triton_pid, signal.SIGKILL)
    await node.reaches("plus", "1.0.0", LOADING)
    await node.reaches("plus", "1.0.0", READY)
    assert await node.ask("plus", 1) == [2]
    assert len(node.coordinator.downloads) == downloads + 1
    assert all(not process.is_running() or process.status() == psutil.STATUS_ZOMBIE for process in stubs)
    since = {model.state for report in node.coordinator.reports[seen:] for model in report.models}
    assert FAILED not in since, "Triton's death is not the model's failure"

    # Somebody else unloads it behind the agent's back.
    await node.agent.triton.client.unload("plus")
    await node.reaches("plus", "1.0.0", FAILED)
    await node.reaches("plus", "1.0.0", READY)


async def test_the_version_that_serves_on_after_a_failed_replacement_is_watched(node: Node) -> None:
    blobs = node.coordinator.blobs
    await node.coordinator.assign(blobs.version("plus", "1.0.0", add_model(1)))
    await node.reaches("plus", "1.0.0", READY)
    await node.coordinator.assign(blobs.version("plus", "2.0.0", add_model(2, before="raise ValueError('no')")))
    await node.reaches("plus", "2.0.0", FAILED)
    assert await node.ask("plus", 1) == [2]
    node.stubs("plus")[0].kill()
    await eventually(lambda: ("plus", "1.0.0") not in node.coordinator.states(), within_s=5)
    assert any("ValueError: no" in m.message for m in node.coordinator.reports[-1].models), "why it failed stays"


async def test_the_version_that_serves_on_is_audited(node: Node) -> None:
    blobs = node.coordinator.blobs
    await node.coordinator.assign(blobs.version("plus", "1.0.0", add_model(1)))
    await node.reaches("plus", "1.0.0", READY)
    missing = blobs.version("plus", "2.0.0", "not there")
    del blobs[missing.files[0].digest]
    await node.coordinator.assign(missing)
    await node.reaches("plus", "2.0.0", FAILED)
    assert node.coordinator.states()["plus", "1.0.0"] == READY
    await node.agent.triton.client.unload("plus")
    await eventually(lambda: ("plus", "1.0.0") not in node.coordinator.states(), within_s=10)


async def test_a_model_is_not_unloaded_while_clients_still_ask(node: Node) -> None:
    blobs = node.coordinator.blobs
    await node.coordinator.assign(blobs.version("plus", "1.0.0", add_model(1)))
    await node.reaches("plus", "1.0.0", READY)
    await node.coordinator.assign()
    await node.reaches("plus", "1.0.0", UNLOADING)
    loop = asyncio.get_running_loop()
    late = loop.time() + 1.0
    while loop.time() < late:
        assert await node.ask("plus", 1) == [2], "who has not been told yet is answered"
    await eventually(lambda: not node.coordinator.states())
    with pytest.raises(AimeshError):
        await node.ask("plus", 1)


async def test_strays_are_unloaded_also_when_nothing_was_ever_assigned(node: Node) -> None:
    await eventually(lambda: node.agent.triton.status.ready)
    stray = node.blobs.parent / "repository" / "stray"
    (stray / "1").mkdir(parents=True)
    (stray / "1" / "model.py").write_text(add_model(1))
    (stray / "config.pbtxt").write_text(adapt_config(CONFIG, "stray", python_environment()))
    await node.agent.triton.client.load("stray", 20)
    node.agent.models.assign(membership_pb2.Assignments())
    await eventually(lambda: not node.stubs("stray"), within_s=10)


async def test_a_triton_that_is_silent_for_a_while_leaves_the_routes_and_comes_back_as_it_was(node: Node) -> None:
    await node.coordinator.assign(node.coordinator.blobs.version("plus", "1.0.0", add_model(1)))
    await node.reaches("plus", "1.0.0", READY)
    before, stubs = node.agent.triton.status, node.stubs("plus")
    os.kill(before.pid, signal.SIGSTOP)
    begun = time.monotonic()
    await node.reaches("plus", "1.0.0", LOADING)
    assert time.monotonic() - begun < 10, "long before it is given up"
    assert node.coordinator.reports[-1].triton.message == "Triton runs and does not answer"
    os.kill(before.pid, signal.SIGCONT)
    await node.reaches("plus", "1.0.0", READY)
    assert node.agent.triton.status == before
    assert node.stubs("plus") == stubs, "not loaded anew"


async def test_a_stub_that_never_lets_its_last_request_go_is_ended_when_its_version_is_replaced(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node_agent.steps._STUB_EXIT_S", 0.5)
    blobs, asked = node.coordinator.blobs, node.blobs.parent / "asked"
    stuck = f"open('{asked}', 'w').close(); time.sleep(3600)"
    await node.coordinator.assign(blobs.version("plus", "1.0.0", add_model(1, request=stuck), self_test=""))
    await node.reaches("plus", "1.0.0", READY)
    stuck_stub = ProcessId.of(node.stubs("plus")[0].pid)
    for_ever = asyncio.create_task(node.ask("plus", 1))
    await eventually(asked.exists)
    await node.coordinator.assign(blobs.version("plus", "2.0.0", add_model(2)))
    await node.reaches("plus", "2.0.0", READY)
    await eventually(lambda: not stuck_stub.alive())
    with pytest.raises(AimeshError):
        await for_ever
    assert await node.ask("plus", 1) == [3]
    assert len(node.stubs("plus")) == 1


async def test_work_that_is_cancelled_before_it_begins_is_over(node: Node) -> None:
    version = node.coordinator.blobs.version("plus", "1.0.0", add_model(1))
    await eventually(lambda: node.agent.triton.status.ready)
    node.agent.models.assign(membership_pb2.Assignments(revision=1, models=[version]))
    node.agent.models.assign(membership_pb2.Assignments(revision=2))
    await eventually(lambda: node.agent.models.work("plus") is None)
    node.agent.models.assign(membership_pb2.Assignments(revision=3, models=[version]))
    await node.reaches("plus", "1.0.0", READY)


async def test_a_full_disk_is_named_and_waited_for(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = node.blobs.parent / "failpoints"
    monkeypatch.setattr("meshkit.blobs.failpoint", Armed(f"@{switch}"))
    blobs = node.coordinator.blobs
    good, big = blobs.version("good", "1.0.0", add_model(1)), blobs.version("big", "1.0.0", add_model(2))
    await node.coordinator.assign(good)
    await node.reaches("good", "1.0.0", READY)
    switch.write_text("blob.append=nospace")
    await node.coordinator.assign(good, big)
    await node.reaches("big", "1.0.0", FAILED)
    size = big.files[0].size
    assert f"no space left on the disk of {node.blobs}: a file of {size} bytes" in node.coordinator.message("big")
    assert list((node.blobs.parent / "partial").iterdir()) == []
    assert await node.ask("good", 1) == [2]
    switch.unlink()
    await node.reaches("big", "1.0.0", READY)
