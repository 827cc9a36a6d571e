from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from inference.demo import demo_models
from inference.packaging import Package, package
from tests.mesh.inference.ask import RefusedError, Stream
from tests.mesh.inference.conftest import Server

NAME = "smollm2"
STORY = "Once upon a time there was"


@pytest.fixture(scope="module")
def packed() -> Package:
    return package(demo_models()[0], NAME, "1.0.0", parameters={"n_ctx": "1024", "n_parallel": "4", "max_queue": "2"})


@pytest.fixture(scope="module")
def model(server: Server, packed: Package) -> Iterator[Server]:
    server.load(packed)
    yield server
    server.unload(NAME)


def ask(model: Server, **inputs: Any) -> list[str]:
    return list(Stream(model.address, NAME).send(**inputs))


def cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def wait_idle(process: psutil.Process) -> None:
    """Waits until a process has used next to no processor time for a fifth of a second."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        before = cpu_seconds(process)
        threading.Event().wait(0.2)
        if cpu_seconds(process) - before < 0.05:
            return
    pytest.fail("the engine still works")


def test_it_takes_and_gives_what_its_signature_says(model: Server) -> None:
    metadata = model.client.get_model_metadata(NAME, as_json=True)
    assert {one["name"] for one in metadata["inputs"]} == {
        "text_input", "stream", "sampling_parameters", "exclude_input_in_output", "messages",
    }  # fmt: skip
    assert [one["name"] for one in metadata["outputs"]] == ["text_output"]


def test_tokens_come_one_by_one_and_make_the_whole_answer(model: Server) -> None:
    stream = Stream(model.address, NAME).send(text_input=STORY, stream=True, max_tokens=16)
    pieces = list(stream)
    assert len(pieces) == 16
    assert stream.times == sorted(stream.times)
    assert stream.times[0] < stream.times[-1] / 2
    whole = ask(model, text_input=STORY, exclude_input_in_output=True, max_tokens=16)
    assert whole == ["".join(pieces)]


def test_a_whole_answer_repeats_the_prompt_unless_told_not_to(model: Server) -> None:
    (answer,) = ask(model, text_input=STORY, max_tokens=4)
    assert answer.startswith(STORY)
    assert ask(model, text_input=STORY, max_tokens=4, exclude_input_in_output=False) == [answer]
    (alone,) = ask(model, text_input=STORY, max_tokens=4, exclude_input_in_output=True)
    assert STORY + alone == answer


def test_messages_go_through_the_models_chat_template(model: Server) -> None:
    turns = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": "What is the capital of France?"},
    ]
    template = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in turns)
    by_hand = ask(model, text_input=template + "<|im_start|>assistant\n", exclude_input_in_output=True, max_tokens=30)
    by_template = ask(model, messages=json.dumps(turns), max_tokens=30)
    assert by_template == by_hand
    assert "Paris" in by_template[0]
    assert "".join(ask(model, messages=json.dumps(turns), stream=True)) == by_template[0]


def test_sampling_parameters_are_obeyed(model: Server) -> None:
    (long,) = ask(model, text_input=STORY, exclude_input_in_output=True, max_tokens=40)
    word = re.findall(r" \w+", long)[5]
    (cut,) = ask(model, text_input=STORY, exclude_input_in_output=True, max_tokens=40, stop=[word])
    assert cut == long[: long.index(word)]
    seeded = [
        ask(model, text_input=STORY, stream=True, temperature=1.5, seed=seed, max_tokens=12) for seed in (1, 1, 2)
    ]
    assert seeded[0] == seeded[1] != seeded[2]


def test_sixteen_tokens_unless_told_otherwise_as_vllm(model: Server) -> None:
    assert len(ask(model, text_input=STORY, stream=True, ignore_eos=True)) == 16


def test_streams_run_together(model: Server) -> None:
    """Every stream has tokens before any has ended: none waits for another."""
    streams = [
        Stream(model.address, NAME).send(text_input=f"{index}. {STORY}", stream=True, max_tokens=40, ignore_eos=True)
        for index in range(4)
    ]
    assert [len(list(stream)) for stream in streams] == [40] * 4
    firsts = [stream.sent + stream.times[0] for stream in streams]
    lasts = [stream.sent + stream.times[-1] for stream in streams]
    assert max(firsts) < min(lasts)


def test_a_cancelled_stream_stops_the_engine(model: Server) -> None:
    process = model.stub(NAME)
    stream = Stream(model.address, NAME).send(text_input=STORY, stream=True, max_tokens=900, ignore_eos=True)
    pieces = iter(stream)
    before = cpu_seconds(process)
    for _ in range(20):
        next(pieces)
    assert cpu_seconds(process) > before
    stream.close()
    wait_idle(process)
    assert len(ask(model, text_input=STORY, stream=True, max_tokens=4)) == 4


def test_a_cancelled_whole_answer_stops_the_engine(model: Server) -> None:
    process = model.stub(NAME)
    before = cpu_seconds(process)
    stream = Stream(model.address, NAME).send(text_input=STORY, max_tokens=900, ignore_eos=True)
    deadline = time.monotonic() + 10
    while cpu_seconds(process) - before < 0.2:
        assert time.monotonic() < deadline
        threading.Event().wait(0.02)
    stream.close()
    wait_idle(process)


def test_more_than_slots_and_queue_hold_is_refused_at_once(model: Server) -> None:
    def streams(count: int) -> list[Stream]:
        many = {"text_input": STORY, "stream": True, "max_tokens": 200, "ignore_eos": True}
        return [Stream(model.address, NAME).send(**many) for _ in range(count)]

    working = streams(4)
    for stream in working:
        next(iter(stream))
    more = streams(2 + 3)  # whichever come last
    deadline = time.monotonic() + 20
    while len(refused := [stream for stream in more if _was_refused(stream)]) < 3:
        assert time.monotonic() < deadline, f"{len(refused)} of 3 were refused"
        time.sleep(0.02)
    for stream in refused:
        with pytest.raises(RefusedError, match="2 requests are waiting already"):
            next(iter(stream))
    waiting = [stream for stream in more if stream not in refused]
    assert [stream.arrived.qsize() for stream in waiting] == [0, 0]
    for stream in working + waiting:
        stream.close()
    wait_idle(model.stub(NAME))
    assert ask(model, text_input=STORY, max_tokens=1)


def _was_refused(stream: Stream) -> bool:
    return bool(stream.arrived.queue) and stream.arrived.queue[0][2] is not None


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "text_input or messages is required"),
        ({"text_input": ""}, "text_input or messages is required"),
        ({"text_input": "a", "messages": "[]"}, "both given"),
        ({"text_input": "a", "stream": True, "exclude_input_in_output": False}, "not allowed when streaming"),
        ({"messages": "[", "stream": True}, "messages is not valid JSON: Expecting value"),
        ({"messages": "[]"}, "messages must be a JSON list of turns"),
        ({"messages": '[{"role": "user"}]'}, r'messages\[0\] must be .* not {"role": "user"}'),
        ({"text_input": "a", "sampling_parameters": "{"}, "sampling_parameters is not valid JSON"),
        ({"text_input": "a", "sampling_parameters": "[]"}, "must be a JSON object"),
        ({"text_input": "a", "max_token": 3}, "unknown max_token; known: .*max_tokens"),
        ({"text_input": "a", "max_tokens": 0}, "max_tokens = 0: must be int, 1 to"),
        ({"text_input": "a", "top_p": True}, "top_p = true: must be int or float, 0 to 1"),
        ({"text_input": "a", "stop": 3}, "stop = 3: must be text or a list of texts"),
        ({"text_input": "a " * 1500}, r"the prompt has 1501 tokens, but one request may have 1024 in all"),
    ],
)
def test_what_is_wrong_with_a_request_is_said(model: Server, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError, match=message):
        ask(model, **inputs)


def test_unary_calls_are_refused_by_triton(model: Server) -> None:
    with pytest.raises(InferenceServerException, match="decoupled"):
        model.client.infer(NAME, [triton.InferInput("text_input", [1], "BYTES")])


def test_memory_is_near_its_estimate(model: Server, packed: Package) -> None:
    resident = model.stub(NAME).memory_info().rss
    estimate = packed.version.requirements.memory_bytes
    assert 0.85 * resident < estimate < 1.3 * resident
