"""Families by names and shapes alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.family import family_of

Named = list[tuple[str, tuple[int, ...]]]


@pytest.mark.parametrize(
    ("operators", "tensors", "family"),
    [
        (["MultiHeadAttention", "Dense"], [], "transformer"),
        (["Softmax", "LayerNormalization", "MatMul"], [], "transformer"),
        (["scaled_dot_product_attention", "linear"], [], "transformer"),
        (["Conv", "LSTM", "Gemm"], [], "recurrent"),
        (["Conv", "Relu", "Gemm"], [], "convolutional"),
        (["Conv2D", "BiasAdd"], [], "convolutional"),
        (["DepthwiseConv2dNative"], [], "convolutional"),
        (["TreeEnsembleClassifier"], [], "trees"),
        (["LinearClassifier", "Normalizer"], [], "linear"),
        (["SVMClassifier"], [], "kernel"),
        (["Gemm", "Relu"], [("a", (4, 3)), ("b", (3, 2))], "feed-forward"),
        (["Sigmoid"], [], ""),
        ([], [("down.attn.to_q.weight", (8, 8)), ("down.conv.weight", (64, 64, 3, 3))], "convolutional"),
        ([], [("backbone.layers.0.mixer.A_log", (8, 8)), ("x", (8, 8))], "state-space"),
        ([], [("model.layers.0.mlp.experts.w1", (8, 64, 32)), ("model.layers.0.self_attn.k_proj.weight", (8, 8))],
         "transformer"),
        ([], [("rnn.weight_hh_l0", (12, 3)), ("rnn.weight_ih_l0", (12, 4))], "recurrent"),
        ([], [("coef", (1, 4))], "linear"),
        ([], [("mean", (4,))], ""),
        ([], [], ""),
    ],
)  # fmt: skip
def test_families(operators: list[str], tensors: Named, family: str) -> None:
    assert family_of(operators, tensors) == family


@given(
    st.lists(st.text(max_size=30), max_size=8),
    st.lists(st.tuples(st.text(max_size=40), st.lists(st.integers(0, 1 << 40), max_size=6).map(tuple)), max_size=8),
)
def test_any_names_give_some_answer(operators: list[str], tensors: Named) -> None:
    assert family_of(operators, tensors) == family_of(reversed(operators), tensors)
