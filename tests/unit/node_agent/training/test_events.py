from __future__ import annotations

import json
import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from node_agent.training.events import EventTail, parse


def line(step: int) -> bytes:
    return json.dumps({"point": {"step": str(step), "loss": 1.5}}).encode() + b"\n"


@given(st.lists(st.integers(0, 1 << 40), max_size=8), st.integers(0, 400))
def test_however_a_file_is_cut_each_line_is_read_once(steps: list[int], cut: int) -> None:
    data = b"".join(map(line, steps))
    first, taken = parse(data[:cut])
    rest, _ = parse(data[taken:])
    assert [event.point.step for event in first + rest] == steps


def test_a_line_that_is_no_event_is_left_out_and_what_is_not_finite_is_read() -> None:
    data = b'{"point": {"loss": "NaN"}}\n{"point": tru\n\xff\n{"news": 1, "port": 7}\n'
    found, taken = parse(data)
    assert taken == len(data)
    assert math.isnan(found[0].point.loss)
    assert [event.port for event in found[1:]] == [7]


def test_of_many_points_the_last_is_told_and_nothing_else_is_left_out() -> None:
    port, error = b'{"port": 7}\n', b'{"error": {"message": "at \\"point\\": {"}}\n'
    found, _ = parse(line(1) + port + line(2) + error + line(3), last_point=True)
    assert [event.WhichOneof("body") for event in found] == ["port", "error", "point"]
    assert found[2].point.step == 3
    assert found[1].error.message == 'at "point": {'


def test_a_tail_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    tail = EventTail(tmp_path / "events.jsonl")
    assert tail.read() == []
    tail.path.write_bytes(line(1) + line(2)[:-5])
    assert [event.point.step for event in tail.read()] == [1]
    assert tail.offset == len(line(1))
    with tail.path.open("ab") as file:
        file.write(line(2)[-5:])
    assert [event.point.step for event in EventTail(tail.path, tail.offset).read()] == [2]
