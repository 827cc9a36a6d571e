from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tritonclient.utils import InferenceServerException

from inference.demo import demo_models
from inference.packaging import Package, package
from tests.mesh.inference.ask import tensor
from tests.mesh.inference.conftest import Server
from tests.unit.inference.needs import without_torch

NAME = "minilm"
TEXTS = [
    "A cat sits on the mat.",
    "There is a kitten on the rug.",
    "The central bank raised interest rates.",
    "",
    "Ünïcödé — 日本語 🙂 [MASK] </s>",
    "word " * 2000,
    *(" ".join(["tokens"] * count) for count in range(1, 40)),
]


@pytest.fixture(scope="module")
def packed() -> Package:
    return package(demo_models()[1], NAME, "1.0.0")


@pytest.fixture(scope="module")
def model(server: Server, packed: Package) -> Iterator[Server]:
    server.load(packed)
    yield server
    server.unload(NAME)


def embed(model: Server, texts: list[str]) -> npt.NDArray[Any]:
    values = np.array([text.encode() for text in texts], dtype=np.object_)
    answer = model.client.infer(NAME, [tensor("text", values)], client_timeout=60)
    vectors: npt.NDArray[Any] = answer.as_numpy("embedding")
    return vectors


@without_torch
def test_vectors_are_the_references(model: Server) -> None:
    from tests.mesh.inference import reference_bert

    wanted = reference_bert.embed(demo_models()[1], TEXTS)
    vectors = embed(model, TEXTS)
    assert vectors.dtype == np.float32
    assert np.abs(vectors - wanted).max() < 1e-5
    assert (vectors * wanted).sum(axis=1).min() > 0.99999


def test_vectors_do_not_depend_on_their_batch(model: Server) -> None:
    together = embed(model, TEXTS)
    alone = np.concatenate([embed(model, [text]) for text in TEXTS[:8]])
    assert np.abs(together[:8] - alone).max() < 1e-5


def test_vectors_have_length_one_and_put_like_near_like(model: Server) -> None:
    vectors = embed(model, TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    cat, kitten, bank = vectors[:3]
    assert cat @ kitten > 0.5 > 0.2 > cat @ bank


def test_no_text_gives_no_vector(model: Server) -> None:
    assert embed(model, []).shape == (0, 384)


def test_wrong_inputs_are_refused(model: Server) -> None:
    with pytest.raises(InferenceServerException, match="text is not UTF-8"):
        model.client.infer(NAME, [tensor("text", np.array([b"\xff"], dtype=np.object_))])
    with pytest.raises(
        InferenceServerException, match=r"unexpected shape for input 'text'.*Expected \[-1\], got \[1,1\]"
    ):
        model.client.infer(NAME, [tensor("text", np.array([[b"a"]], dtype=np.object_))])
    with pytest.raises(InferenceServerException, match="data-type is 'FP32', but model 'minilm' expects"):
        model.client.infer(NAME, [tensor("text", np.zeros(1, np.float32))])


def test_memory_is_near_its_estimate(model: Server, packed: Package) -> None:
    embed(model, ["word " * 300] * 32)
    resident = model.stub(NAME).memory_info().rss
    estimate = packed.version.requirements.memory_bytes
    print(f"resident {resident >> 20} MiB, estimate {estimate >> 20} MiB")
    assert 0.8 * resident < estimate < 2 * resident, "in the right order; the kernel counts differently each time"
