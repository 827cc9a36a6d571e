"""What a reader found in a file, and how it becomes an Identification: counts, types and the estimate of needs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from aimesh.registry.v1 import registry_pb2
from training.family import family_of
from training.formats.bounded import broken, printable

MIB = 1 << 20
DANGER = "dangerous: "
"""How a warning begins that says that loading the file can run code of whoever made it."""
MOST_WARNINGS = 20
OVERHEAD = 1.2
BASE_BYTES: Mapping[str, int] = {
    "pytorch": 400 * MIB,
    "tensorflow": 520 * MIB,
    "keras": 520 * MIB,
    "onnx": 90 * MIB,
    "llama.cpp": 100 * MIB,
    "scikit-learn": 150 * MIB,
}
"""What a process with the framework and a model of no size takes: measured with torch 2.13, TensorFlow 2.21 (511 MiB),
onnxruntime 1.31, llama.cpp and scikit-learn 1.9 (123 MiB) on Linux, rounded up."""
_OTHER_BASE_BYTES = 400 * MIB
_ON_GPU = (
    "safetensors",
    "gguf",
    "onnx",
    "torchscript",
    "torch_export",
    "state_dict",
    "keras_h5",
    "keras",
    "saved_model",
)
_MOST_ELEMENTS = 1 << 56

# Bits an element. The quantised types of GGUF count their scales: bytes of a block * 8 / its elements, from
# ggml's table of types (ggml.c, type_traits).
BITS: Mapping[str, float] = {
    "BOOL": 8, "UINT8": 8, "UINT16": 16, "UINT32": 32, "UINT64": 64, "INT8": 8, "INT16": 16, "INT32": 32, "INT64": 64,
    "FP16": 16, "BF16": 16, "FP32": 32, "FP64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "FP8": 8, "FP4": 4, "INT4": 4,
    "UINT4": 4, "Q4_0": 4.5, "Q4_1": 5, "Q5_0": 5.5, "Q5_1": 6, "Q8_0": 8.5, "Q8_1": 9, "Q2_K": 2.625, "Q3_K": 3.4375,
    "Q4_K": 4.5, "Q5_K": 5.5, "Q6_K": 6.5625, "Q8_K": 9.125, "IQ2_XXS": 2.0625, "IQ2_XS": 2.3125, "IQ3_XXS": 3.0625,
    "IQ1_S": 1.5625, "IQ4_NL": 4.5, "IQ3_S": 3.4375, "IQ2_S": 2.5625, "IQ4_XS": 4.25, "IQ1_M": 1.75, "TQ1_0": 1.6875,
    "TQ2_0": 2.0625, "MXFP4": 4.25,
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    """A tensor's name, type and shape; its values are not read."""

    name: str
    data_type: str
    """KServe's name (FP32), or the format's own where KServe has none (Q4_K); empty when unknown."""
    shape: tuple[int, ...]
    """-1 for any size, in inputs and outputs only."""

    @property
    def count(self) -> int:
        """Elements. Raises InvalidInputError for sizes that no tensor has."""
        if any(size < 0 for size in self.shape):
            raise broken(f"tensor {printable(self.name)!r} has shape {list(self.shape)[:8]}")
        count = math.prod(self.shape[:64])
        if len(self.shape) > 64 or count > _MOST_ELEMENTS:
            raise broken(f"tensor {printable(self.name)!r} of shape {list(self.shape)[:8]} fits no memory")
        return count


@dataclass(frozen=True)
class Findings:
    """What one file, or one directory, was found to be."""

    format: str
    framework: str = ""
    architecture: str = ""
    family: str = ""
    """When the format itself says it; otherwise it is worked out from operators and tensors."""
    tensors: tuple[Tensor, ...] = ()
    """The weights."""
    operators: frozenset[str] = frozenset()
    """Names of operations or layers, in the format's own words."""
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    warnings: tuple[str, ...] = ()

    def warn(self, *warnings: str) -> Findings:
        """The same with more warnings, each once."""
        return replace(self, warnings=tuple(dict.fromkeys((*self.warnings, *warnings))))


def to_identification(found: Findings) -> registry_pb2.Identification:
    """Counts, works out the family and estimates the needs. Raises InvalidInputError for impossible shapes."""
    types = data_types(found.tensors)
    return registry_pb2.Identification(
        format=found.format,
        framework=found.framework,
        family=found.family or family_of(found.operators, [(one.name, one.shape) for one in found.tensors]),
        architecture=printable(found.architecture),
        parameters=sum(types.values()),
        data_types=types,
        signature=registry_pb2.Signature(inputs=_specs(found.inputs), outputs=_specs(found.outputs)),
        requirements=requirements(found, types),
        warnings=_cut(found.warnings),
    )


def data_types(tensors: Iterable[Tensor]) -> dict[str, int]:
    """Elements by type."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.data_type or "unknown"] += tensor.count
    if counts.total() > _MOST_ELEMENTS:
        raise broken(f"its tensors together have {counts.total()} elements, which fit no memory")
    return dict(counts)


def requirements(found: Findings, types: Mapping[str, int]) -> registry_pb2.Requirements:
    """An estimate from the weights alone, for when nothing better (a runtime's own, a measurement) is known.

    bytes of weights = sum of elements * bits of their type / 8; memory = 1.2 * that + the framework's own process;
    GPU memory, when it is put on a GPU, = 1.2 * that, and 0 for what has no GPU code (scikit-learn). An unknown type
    counts as 32 bits. The 1.2 is EleutherAI's rule for inference ("Transformer Math 101": total memory = 1.2 * model
    memory); keys and values of long contexts and large batches come on top. Zero for files without weights.
    """
    weights = sum(count * bits_of(name) / 8 for name, count in types.items())
    if not weights:
        return registry_pb2.Requirements()
    need = int(weights * OVERHEAD)
    base = BASE_BYTES.get(found.framework, _OTHER_BASE_BYTES)
    return registry_pb2.Requirements(memory_bytes=need + base, gpu_memory_bytes=need if found.format in _ON_GPU else 0)


def bits_of(data_type: str) -> float:
    """Bits an element takes: of a record (V64: 64 bytes) too; 32 when the type is unknown."""
    if data_type[:1] == "V" and data_type[1:].isdecimal():
        return 8.0 * int(data_type[1:10])
    return BITS.get(data_type, 32)


def _specs(tensors: Iterable[Tensor]) -> list[registry_pb2.TensorSpec]:
    known = registry_pb2.DataType.DESCRIPTOR.values_by_name
    return [
        registry_pb2.TensorSpec(
            name=printable(one.name),
            data_type=registry_pb2.DataType.Value(f"DATA_TYPE_{one.data_type}")
            if f"DATA_TYPE_{one.data_type}" in known
            else registry_pb2.DATA_TYPE_UNSPECIFIED,
            shape=[size if -1 <= size < 1 << 63 else -1 for size in one.shape[:64]],
        )
        for one in list(tensors)[:1000]
    ]


def _cut(warnings: tuple[str, ...]) -> list[str]:
    """Dangers first, and not more than anyone reads."""
    ordered = sorted(warnings, key=lambda text: not text.startswith(DANGER))
    left_out = len(ordered) - MOST_WARNINGS
    return [*ordered[:MOST_WARNINGS], *([f"and {left_out} more"] if left_out > 0 else [])]
