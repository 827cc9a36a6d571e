from __future__ import annotations

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.routing.v1 import routing_pb2
from node_agent.gpuchoice import GpuShare
from node_agent.plan import FAILED, FETCHING, LOADING, READY, UNLOADING
from node_agent.work import ModelWork, Wanted


def _version(version: str) -> registry_pb2.ModelVersion:
    return registry_pb2.ModelVersion(name="m", version=version, files=[registry_pb2.ModelFile(path="f", size=10)])


def _seen(work: ModelWork, generation: int) -> list[tuple[str, int]]:
    return [(status.version, status.state) for status in work.statuses(generation)]


def test_fetching_shows_progress() -> None:
    work = ModelWork(_version("1.0.0"))
    work.bytes_done = 4
    assert work.statuses(1) == [
        membership_pb2.ModelStatus(name="m", version="1.0.0", state=FETCHING, bytes_done=4, bytes_total=10)
    ]


def test_the_old_version_is_shown_as_long_as_it_serves() -> None:
    work = ModelWork(_version("1.0.0"))
    work.now_serving(1)
    work.succeed(0.0)
    assert _seen(work, 1) == [("1.0.0", READY)]
    work.renew(Wanted(_version("2.0.0")), LOADING)
    assert _seen(work, 1) == [("1.0.0", READY), ("2.0.0", LOADING)]
    work.fail("no", 0.0)
    assert _seen(work, 1) == [("1.0.0", READY), ("2.0.0", FAILED)]
    work.now_serving(1)
    work.succeed(0.0)
    assert _seen(work, 1) == [("2.0.0", READY)]


def test_no_model_is_ready_in_a_triton_that_is_not() -> None:
    work = ModelWork(_version("1.0.0"))
    work.now_serving(1)
    work.succeed(0.0)
    assert _seen(work, 0) == [("1.0.0", LOADING)]
    assert _seen(work, 2) == [("1.0.0", LOADING)]
    assert work.held().generation == 1


def test_pauses_grow_with_failures_and_start_again_after_a_stable_time() -> None:
    work = ModelWork(_version("1.0.0"))
    pauses = []
    for _ in range(12):
        work.fail("no", 100.0)
        pauses.append(work.retry_at - 100.0)
    assert all(pause >= 0.25 for pause in pauses)
    assert pauses[-1] >= 30.0
    assert all(pause <= 60.0 for pause in pauses)
    work.succeed(200.0)
    work.fail("died", 230.0)
    assert work.retry_at - 230.0 >= 30.0, "half a minute is no stable time"
    work.succeed(300.0)
    work.fail("died", 400.0)
    assert work.retry_at - 400.0 <= 1.25


def test_a_failed_unload_stays_an_unload() -> None:
    work = ModelWork(_version("1.0.0"), state=UNLOADING)
    work.fail("busy", 0.0)
    assert work.state == UNLOADING


def test_while_one_version_replaces_another_both_take_gpu_memory() -> None:
    work = ModelWork(_version("1.0.0"))
    assert work.gpu_shares(1) == []
    work.gpu = GpuShare(0, 60)
    work.now_serving(1)
    assert work.gpu_shares(1) == [GpuShare(0, 60)]
    work.renew(Wanted(_version("1.0.0")), LOADING)
    assert work.gpu_shares(1) == [GpuShare(0, 60)], "also while it is loaded again"
    work.renew(Wanted(_version("2.0.0")), LOADING)
    assert work.gpu_shares(1) == [GpuShare(0, 60)]
    work.gpu = GpuShare(1, 70)
    assert work.gpu_shares(1) == [GpuShare(1, 70), GpuShare(0, 60)]
    assert work.gpu_shares(2) == [GpuShare(1, 70)], "a Triton that died has given its memory back"
    work.now_serving(1)
    assert work.gpu_shares(1) == [GpuShare(1, 70)]


def test_a_version_serves_on_while_it_is_loaded_with_another_scheduling() -> None:
    work = ModelWork(_version("1.0.0"))
    work.now_serving(1)
    work.succeed(0.0)
    work.renew(Wanted(_version("1.0.0"), routing_pb2.Scheduling(max_queue_size=1)), LOADING)
    assert _seen(work, 1) == [("1.0.0", READY)]
    assert "not yet as assigned" in work.statuses(1)[0].message
    work.fail("no", 0.0)
    assert _seen(work, 1) == [("1.0.0", READY)]
    assert work.statuses(1)[0].message.endswith("no")
    assert work.held().state == FAILED, "it is tried again all the same"
    work.now_serving(1)
    assert _seen(work, 1) == [("1.0.0", READY)], "also while it is tested again"
    work.succeed(0.0)
    assert work.statuses(1)[0].message == ""
    work.loaded = None
    work.renew(Wanted(_version("1.0.0")), LOADING)
    work.now_serving(1)
    assert _seen(work, 1) == [("1.0.0", LOADING)], "what was lost is tested before it serves"
