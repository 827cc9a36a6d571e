"""Stock tritonclient.grpc, synchronous, asyncio and streaming, through the gateway and straight to a replica."""

from __future__ import annotations

import queue
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.grpc.aio
from tritonclient.utils import InferenceServerException

from tests.contract.conftest import Mesh, require_model


@pytest.fixture(params=["gateway", "xds"])
def way(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def target_of(mesh: Mesh, way: str, model: str) -> str:
    return mesh.gateway if way == "gateway" else f"xds:///{model}"


@pytest.fixture
def client(mesh: Mesh, way: str) -> Iterator[Any]:
    client = tritonclient.grpc.InferenceServerClient(target_of(mesh, way, "addone"))
    yield client
    client.close()


def inputs(module: Any = tritonclient.grpc) -> list[Any]:
    tensor = module.InferInput("INPUT0", [3], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2.5, -4], np.float32))
    return [tensor]


EXPECTED = [2, 3.5, -3]


def test_health(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("addone")


def test_metadata_and_config(client: Any) -> None:
    assert client.get_server_metadata().name.startswith("node-"), "which node answered"
    metadata = client.get_model_metadata("addone")
    assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [("INPUT0", "FP32", [-1])]
    config = client.get_model_config("addone").config
    assert (config.name, config.backend, config.max_batch_size) == ("addone", "python", 0)


def test_statistics(client: Any) -> None:
    client.infer("addone", inputs())
    (statistics,) = client.get_inference_statistics("addone").model_stats
    assert statistics.name == "addone"
    names = {each.name for each in client.get_inference_statistics().model_stats}
    assert "addone" in names


def test_infer(client: Any) -> None:
    answer = client.infer("addone", inputs(), request_id="seven")
    assert answer.as_numpy("OUTPUT0").tolist() == EXPECTED
    assert answer.get_response().id == "seven"


def test_infer_with_compression_and_a_deadline(client: Any) -> None:
    answer = client.infer("addone", inputs(), client_timeout=5, compression_algorithm="gzip")
    assert answer.as_numpy("OUTPUT0").tolist() == EXPECTED


def test_infer_without_waiting(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    for _ in range(10):
        client.async_infer("addone", inputs(), lambda result, error: answers.put((result, error)))
    for _ in range(10):
        result, error = answers.get(timeout=10)
        assert error is None
        assert result.as_numpy("OUTPUT0").tolist() == EXPECTED


def test_stream(client: Any) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for number in range(5):
        client.async_stream_infer("addone", inputs(), request_id=str(number))
    for number in range(5):
        result, error = answers.get(timeout=10)
        assert error is None
        assert result.get_response().id == str(number)
        assert result.as_numpy("OUTPUT0").tolist() == EXPECTED
    client.stop_stream()


def test_a_wrong_tensor_gets_tritons_own_message(client: Any) -> None:
    wrong = tritonclient.grpc.InferInput("INPUT0", [1], "INT32")
    wrong.set_data_from_numpy(np.zeros(1, np.int32))
    with pytest.raises(InferenceServerException, match="FP32") as failed:
        client.infer("addone", [wrong])
    assert failed.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_by_header(mesh: Mesh) -> None:
    client = tritonclient.grpc.InferenceServerClient(mesh.gateway)
    answer = client.infer("addone", inputs(), headers={"x-aimesh-model": "addone"})
    client.close()
    assert answer.as_numpy("OUTPUT0").tolist() == EXPECTED


def test_an_unknown_model_is_not_found(mesh: Mesh, way: str) -> None:
    client = tritonclient.grpc.InferenceServerClient(target_of(mesh, way, "nosuch"))
    with pytest.raises(InferenceServerException) as failed:
        client.infer("nosuch", inputs(), client_timeout=10)
    client.close()
    assert failed.value.status() == "StatusCode.NOT_FOUND"


async def test_asyncio(mesh: Mesh, way: str) -> None:
    async with tritonclient.grpc.aio.InferenceServerClient(target_of(mesh, way, "addone")) as client:
        assert await client.is_server_live()
        assert await client.is_model_ready("addone")
        assert (await client.get_model_metadata("addone")).name == "addone"
        answer = await client.infer("addone", inputs(tritonclient.grpc.aio))
        assert answer.as_numpy("OUTPUT0").tolist() == EXPECTED


async def test_asyncio_stream(mesh: Mesh, way: str) -> None:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(5):
            yield {
                "model_name": "addone",
                "inputs": inputs(tritonclient.grpc.aio),
                "request_id": str(number),
            }

    async with tritonclient.grpc.aio.InferenceServerClient(target_of(mesh, way, "addone")) as client:
        answers = [each async for each in client.stream_infer(requests())]
    assert [result.get_response().id for result, _ in answers] == ["0", "1", "2", "3", "4"]
    assert all(error is None and result.as_numpy("OUTPUT0").tolist() == EXPECTED for result, error in answers)


def test_a_language_model_streams_its_answer(mesh: Mesh, way: str) -> None:
    """The tensors of Triton's vLLM backend; each answer is a piece of the text."""
    require_model(mesh, "smollm2")
    text = tritonclient.grpc.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"Say hello."], np.object_))
    stream = tritonclient.grpc.InferInput("stream", [1], "BOOL")
    stream.set_data_from_numpy(np.array([True]))
    sampling = tritonclient.grpc.InferInput("sampling_parameters", [1], "BYTES")
    sampling.set_data_from_numpy(np.array([b'{"max_tokens": 8, "temperature": 0}'], np.object_))
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    client = tritonclient.grpc.InferenceServerClient(target_of(mesh, way, "smollm2"))
    client.start_stream(lambda result, error: answers.put((result, error)))
    client.async_stream_infer("smollm2", [text, stream, sampling], enable_empty_final_response=True)
    pieces = list(_pieces(answers))
    client.stop_stream()
    client.close()
    assert len(pieces) > 1
    assert "".join(pieces).strip()


def _pieces(answers: queue.Queue[tuple[Any, Any]]) -> Iterator[str]:
    while True:
        result, error = answers.get(timeout=60)
        assert error is None
        value = result.as_numpy("text_output")
        if value is not None and value.size:
            yield value.reshape(-1)[0].decode()
        if result.get_response().parameters["triton_final_response"].bool_param:
            return
