"""Stock tritonclient.http, and plain HTTP as curl speaks it, against the gateway's REST."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from tests.contract.conftest import Mesh
from tests.mesh.xds.harness import get

httpclient = pytest.importorskip("tritonclient.http", reason="tritonclient[http] is not installed")


@pytest.fixture
def client(mesh: Mesh) -> Iterator[Any]:
    client = httpclient.InferenceServerClient(mesh.gateway)
    yield client
    client.close()


def _inputs() -> list[Any]:
    tensor = httpclient.InferInput("INPUT0", [3], "FP32")
    tensor.set_data_from_numpy(np.array([1, 2.5, -4], np.float32))
    return [tensor]


def test_health_metadata_config_statistics(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("addone")
    assert client.get_server_metadata()["name"].startswith("node-"), "which node answered"
    assert client.get_model_metadata("addone")["name"] == "addone"
    assert client.get_model_config("addone")["backend"] == "python"
    assert client.get_inference_statistics("addone")["model_stats"][0]["name"] == "addone"


def test_infer(client: Any) -> None:
    answer = client.infer("addone", _inputs())
    assert answer.as_numpy("OUTPUT0").tolist() == [2, 3.5, -3]


def test_an_unknown_model_gets_a_clear_error(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="no model of that name") as failed:
        client.infer("nosuch", _inputs())
    assert failed.value.status() == "404"


def test_loading_is_refused(client: Any) -> None:
    with pytest.raises(InferenceServerException, match="aimesh deploy"):
        client.load_model("addone")


def test_plain_json(mesh: Mesh) -> None:
    tensor = {"name": "INPUT0", "shape": [2], "datatype": "FP32", "data": [1, 2]}
    status, body = get(f"http://{mesh.gateway}/v2/models/addone/infer", json.dumps({"inputs": [tensor]}).encode())
    assert status == 200
    assert json.loads(body)["outputs"][0]["data"] == [2.0, 3.0]
    assert get(f"http://{mesh.gateway}/v2/health/ready")[0] == 200
    assert get(f"http://{mesh.gateway}/healthz") == (200, "ok\n")
