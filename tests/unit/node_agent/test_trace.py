"""Triton's traces: what is read of them, and when Triton is told anew what to trace."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import UnavailableError
from node_agent.triton.server import READY, InferenceServer, TritonStatus
from node_agent.triton.trace import MOST_TRACES, Setting, Tally, Trace, Tracer, bucket_of, parse, take, whole


def traced(number: int, model: str, start: int, end: int, sends: int = 0) -> list[dict[str, Any]]:
    """As Triton 2.51 writes one."""
    times = [("REQUEST_START", start), ("QUEUE_START", start + 1), *[("GRPC_SEND_START", end)] * sends]
    marks = [*times, ("COMPUTE_END", end), ("REQUEST_END", end)]
    named = {"id": number, "model_name": model, "model_version": 1}
    return [named, *({"id": number, "timestamps": [{"name": name, "ns": ns}]} for name, ns in marks)]


def text_of(*traces: list[dict[str, Any]]) -> str:
    return json.dumps([entry for trace in traces for entry in trace], separators=(",", ":"))


def test_requests_are_read_with_their_times_and_responses() -> None:
    text = text_of(traced(1, "a", 1000, 5000), traced(2, "b", 2000, 9000, sends=3))
    assert whole(text)
    assert parse(text) == [Trace("a", 1000, 4000, 0), Trace("b", 2000, 7000, 3)]


def test_a_trace_without_its_end_is_left_out() -> None:
    assert parse(text_of(traced(1, "a", 1000, 5000)[:-1], traced(2, "a", 1000, 2000))) == [Trace("a", 1000, 1000, 0)]


@given(st.integers(0, 2000))
def test_no_beginning_of_a_file_looks_whole(cut: int) -> None:
    text = text_of(traced(1, "a", 1000, 5000, 2), traced(2, "a", 1000, 5000, 1))
    assert whole(text[:cut]) == (cut >= len(text))


@given(st.integers(1000, 10**13))
def test_buckets_are_an_eighth_of_an_octave(took_ns: int) -> None:
    index = bucket_of(took_ns)
    assert 2 ** (index / 8) <= took_ns / 1000 * (1 + 1e-9)
    assert took_ns / 1000 <= 2 ** ((index + 1) / 8) * (1 + 1e-9)
    assert bucket_of(0) == bucket_of(999) == 0
    assert math.isclose(2 ** (bucket_of(1_000_000) / 8), 1000, rel_tol=0.1)


def test_files_are_taken_once_and_those_that_are_written_are_left(tmp_path: Path) -> None:
    text = text_of(traced(1, "a", 1, 2))
    (tmp_path / "t.0").write_text(text)
    (tmp_path / "t.1").write_text(text[:-9])
    now = (tmp_path / "t.1").stat().st_mtime
    assert take(tmp_path, now) == [text]
    assert take(tmp_path, now) == []
    assert [path.name for path in tmp_path.iterdir()] == ["t.1"]
    assert take(tmp_path, now + 11) == []
    assert list(tmp_path.iterdir()) == []


def test_what_ran_before_the_version_came_is_not_its_own() -> None:
    tally = Tally("2.0.0", since_ns=1000)
    tally.add(Trace("a", 999, 5_000_000, 2), 1)
    tally.add(Trace("a", 1001, 5_000_000, 2), 4)
    assert (sum(tally.latency.values()), tally.responses) == (1, 8)


class Triton:
    """Remembers what it was told to trace."""

    def __init__(self, folder: Path) -> None:
        self.told: list[tuple[str, int, int, int]] = []
        self.refuses = False
        self.data_dir = folder
        self.settings = SimpleNamespace(triton=SimpleNamespace(mode="managed"))
        self.status = TritonStatus(READY, 1)
        self.client = self
        self.now = 0.0

    async def trace(self, name: str, every: int, a_file: int, most: int) -> None:
        if self.refuses:
            raise UnavailableError("no")
        self.told.append((name, every, a_file, most))

    def tracer(self) -> Tracer:
        return Tracer(cast(InferenceServer, self), lambda: self.now)

    async def second(self, tracer: Tracer, requests: int) -> Mapping[str, Tally]:
        """What it is told in a second with so many requests of model a."""
        self.now += 1
        self.told.clear()
        return await tracer.sample({"a": "1.0.0"}, {"a": requests})


async def test_triton_is_told_when_something_changes_and_not_again(tmp_path: Path) -> None:
    triton = Triton(tmp_path)
    tracer = triton.tracer()
    await triton.second(tracer, 0)
    assert triton.told == [("a", 0, 1, MOST_TRACES)], "what an agent before had traced is ended"
    tracer.want({"a": 1, "gone": 1})
    await triton.second(tracer, 0)
    assert triton.told == [("a", 1, 1, MOST_TRACES)]
    for requests, told in [(5, []), (10, []), (410, [40]), (810, []), (815, [1]), (820, [])]:
        await triton.second(tracer, requests)
        assert [a_file for _, _, a_file, _ in triton.told] == told
    triton.status = replace(triton.status, generation=2)
    await triton.second(tracer, 820)
    assert triton.told == [("a", 1, 1, MOST_TRACES)], "a new Triton knows nothing"
    tracer.want({})
    assert await triton.second(tracer, 820) == {}
    assert triton.told == [("a", 0, 1, MOST_TRACES)]


async def test_triton_may_go_on_before_it_has_written_all_it_may(tmp_path: Path) -> None:
    triton = Triton(tmp_path)
    tracer = triton.tracer()
    tracer.want({"a": 1})
    await triton.second(tracer, 0)
    many = text_of(*(traced(number, "a", 1, 2) for number in range(MOST_TRACES // 4)))
    for number, told in enumerate((0, 1, 0, 1)):
        (tmp_path / "triton" / "traces" / f"t.{number}").write_text(many)
        await triton.second(tracer, 0)
        assert len(triton.told) == told


async def test_a_triton_that_refuses_is_asked_again(tmp_path: Path) -> None:
    triton = Triton(tmp_path)
    triton.refuses = True
    tracer = triton.tracer()
    tracer.want({"a": 1})
    assert set(await triton.second(tracer, 0)) == {"a"}
    assert not tracer.traces("a")
    triton.refuses = False
    await triton.second(tracer, 0)
    assert tracer.traces("a")


async def test_another_version_begins_at_nothing(tmp_path: Path) -> None:
    triton = Triton(tmp_path)
    tracer = triton.tracer()
    tracer.want({"a": 1})
    before = (await tracer.sample({"a": "1.0.0"}, {}))["a"]
    after = (await tracer.sample({"a": "2.0.0"}, {}))["a"]
    assert (before.version, after.version) == ("1.0.0", "2.0.0")
    assert after.since_ns > before.since_ns


@pytest.mark.parametrize(
    ("one", "other", "near"),
    [
        (Setting(1, 1), Setting(1, 2), True),
        (Setting(1, 1), Setting(1, 3), False),
        (Setting(1, 9), Setting(2, 9), False),
        (Setting(0, 9), Setting(0, 1), True),
    ],
)
def test_settings_that_do_as_well_are_left(one: Setting, other: Setting, near: bool) -> None:
    assert one.near(other) is near
