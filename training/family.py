"""Which family of architectures a model belongs to, from the names of its operations and its tensors' shapes."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

# Operations or layers of ONNX, TensorFlow, Keras and torch, in lower case; the first that is found decides.
_OPERATORS: tuple[tuple[str, str], ...] = (
    ("transformer", r"(\w*(multihead|multiheaddot|group|rotary)\w*)?attention|scaled_dot_product_\w*|transformer\w*"),
    ("recurrent", r"(cudnn)?(lstm|gru|rnn|simplernn)(v\d|cell)?|quantized_lstm|bidirectional|conv_?lstm\dd|while_lstm"),
    ("trees", r"treeensemble\w*"),
    ("kernel", r"svm(classifier|regressor)"),
    ("convolutional", r"(depthwise|fused|qlinear|separable|quantized_?)*_?conv(olution)?_?([123]d)?"
                      r"(transpose|integer|native|\w*backprop\w*)?"),
    ("linear", r"linear(classifier|regressor)"),
)  # fmt: skip
_DENSE = re.compile(r"gemm|matmul\w*|dense|linear|addmm|mm|batchmatmul\w*|fullyconnected|qlinearmatmul")
_NORMS = re.compile(r"(skip)?(simplified)?layer_?norm\w*|rms_?norm\w*")
_ATTENTION = re.compile(r"attn|attention|[qkv]_proj\b|qkv|in_proj_weight|SelfAttention|\bc_attn|query_key_value", re.I)
_RECURRENT = re.compile(r"weight_[ih]h_l\d|recurrent_kernel|\blstm\b|\bgru\b|lstm_cell|gru_cell", re.I)
_STATE_SPACE = re.compile(r"\bA_log\b|\bssm_|mixer\.(dt_proj|x_proj)|time_mix|\brwkv", re.I)
_NORM_NAME = re.compile(r"norm|\bbn\d*\b|batch_normalization|running_(mean|var)|moving_(mean|variance)", re.I)


def family_of(operators: Iterable[str], tensors: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """transformer, convolutional, recurrent, state-space, trees, kernel, linear or feed-forward; empty when unclear.

    A program's operations say more than the names of its weights, which say more than their shapes. What has attention
    but keeps most of its numbers in convolutions (a U-Net) is convolutional.
    """
    lowered = {name.lower() for name in operators}
    return _by_operators(lowered, tensors) or _by_tensors(tensors) or _dense(lowered, tensors)


def _by_operators(names: set[str], tensors: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    found = [family for family, pattern in _OPERATORS if any(re.fullmatch(pattern, name) for name in names)]
    # An attention that was taken apart at export: products, a softmax and layer norms, or a normed sum of squares.
    if "softmax" in names and any(map(_NORMS.fullmatch, names)) and any(map(_DENSE.fullmatch, names)):
        found.insert(0, "transformer")
    if found and found[0] == "transformer" and _mostly_kernels(tensors):
        return "convolutional"
    return found[0] if found else ""


def _by_tensors(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    names = [name for name, _ in tensors]
    if any(map(_STATE_SPACE.search, names)):
        return "state-space"
    if any(map(_ATTENTION.search, names)):
        return "convolutional" if _mostly_kernels(tensors) else "transformer"
    if any(map(_RECURRENT.search, names)):
        return "recurrent"
    return "convolutional" if any(_is_kernel(shape) for _, shape in tensors) else ""


def _dense(operators: set[str], tensors: Sequence[tuple[str, tuple[int, ...]]]) -> str:
    """One matrix is a linear model, several are a feed-forward network."""
    matrices = sum(len(shape) == 2 and not _NORM_NAME.search(name) for name, shape in tensors)
    if operators and not any(map(_DENSE.fullmatch, operators)):
        return ""
    if matrices:
        return "linear" if matrices == 1 else "feed-forward"
    return ""


def _is_kernel(shape: tuple[int, ...]) -> bool:
    """Whether a weight is a convolution's: over two or three dimensions, or over one with a small window."""
    return len(shape) in (4, 5) or (len(shape) == 3 and 1 < min(shape[-1], shape[0]) <= 16)


def _mostly_kernels(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> bool:
    sizes = [(len(shape) in (4, 5), math.prod(shape)) for _, shape in tensors]
    return 2 * sum(size for kernel, size in sizes if kernel) > sum(size for _, size in sizes)
