"""TensorFlow's SavedModel: the graph and its signatures from saved_model.pb, the variables from their index."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from training.findings import Findings, Tensor
from training.formats.bounded import Window, broken, open_window
from training.formats.bundle import variables
from training.formats.wire import Message, message_in, top_level

FILE = "saved_model.pb"
# tensorflow/core/framework/types.proto.
TYPES = {
    1: "FP32", 2: "FP64", 3: "INT32", 4: "UINT8", 5: "INT16", 6: "INT8", 7: "BYTES", 8: "COMPLEX64", 9: "INT64",
    10: "BOOL", 14: "BF16", 17: "UINT16", 18: "COMPLEX128", 19: "FP16", 22: "UINT32", 23: "UINT64", 24: "FP8",
    25: "FP8",
}  # fmt: skip
# What a training run keeps beside the model's own variables.
_NOT_WEIGHTS = (".OPTIMIZER_SLOT", "optimizer/", "save_counter", "_CHECKPOINTABLE_OBJECT_GRAPH", "_optimizer/")
_DEPTH = 4


def recognises(window: Window) -> bool:
    """Whether its fields are schema version 1 and graphs that begin with what is said about them; it may be cut."""
    if window.head(2) != b"\x08\x01":
        return False
    fields = top_level(window)
    graph = fields.get(2)
    return fields.keys() == {1, 2} and graph is not None and window.head(graph.begin + 1)[graph.begin :] == b"\x0a"


def read(window: Window, path: Path) -> Findings:
    """The first graph, which is the one to serve. `path` is the .pb file. Raises InvalidInputError."""
    graph = next(message_in(window).all(2), None)
    if graph is None:
        raise broken(f"{path.name} holds no graph")
    inputs, outputs = _signature(graph)
    index, warnings, held = path.parent / "variables" / "variables.index", [], []
    if index.is_file():
        with open_window(index) as table:
            held = [Tensor(name, TYPES.get(kind, ""), shape) for name, kind, shape in variables(table)]
        if not list(index.parent.glob("variables.data-*")):
            warnings.append("the variables' values are missing: no variables/variables.data-*")
    elif any(name in ("VarHandleOp", "VariableV2") for name in _operators(graph)):
        warnings.append("the variables are missing: no variables/variables.index beside it")
    weights = _weights(held)
    found = Findings(
        "saved_model",
        "tensorflow",
        tensors=weights,
        operators=frozenset(_operators(graph)),
        inputs=inputs,
        outputs=outputs,
    )
    return found.warn(*warnings)


def _weights(held: list[Tensor]) -> tuple[Tensor, ...]:
    """The model's own variables. Keras 3 exports each a second time below _all_variables/."""
    twice = any(one.name.startswith("variables/") for one in held)
    marks = (*_NOT_WEIGHTS, *(["_all_variables/"] if twice else []))
    return tuple(one for one in held if one.data_type != "BYTES" and not any(mark in one.name for mark in marks))


def _operators(meta: Message) -> Iterator[str]:
    """MetaGraphDef.graph_def 2 {node 1 {op 2}, library 2 {function 1 {node_def 3 {op 2}}}}."""
    for graph in meta.all(2):
        for node in graph.all(1):
            yield node.text(2)
        for library in graph.all(2):
            for function in library.all(1):
                for node in function.all(3):
                    yield node.text(2)


def _signature(meta: Message) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """MetaGraphDef.signature_def 5: a map to SignatureDef {inputs 1, outputs 2}; `serving_default` before others."""
    found: dict[str, Message] = {}
    for entry in meta.all(5):
        for value in entry.all(2):
            found[entry.text(1)] = value
    name = next((one for one in ("serving_default", "serve", *found) if one in found and one[:2] != "__"), None)
    if name is None:
        return (), ()
    return tuple(_tensors(found[name], 1)), tuple(_tensors(found[name], 2))


def _tensors(signature: Message, field: int) -> Iterator[Tensor]:
    """A map to TensorInfo {dtype 2, tensor_shape 3 {dim 2 {size 1}, unknown_rank 3}}."""
    for entry in signature.all(field):
        for info in entry.all(2):
            kinds = [one.value for one in info.fields() if one.number == 2]
            shape = tuple(size for shape in info.all(3) for dimension in shape.all(2) for size in _size(dimension))
            yield Tensor(entry.text(1), TYPES.get(kinds[-1] if kinds else 0, ""), shape)


def _size(dimension: Message) -> list[int]:
    return [max(-1, size) for size in dimension.numbers(1)[-1:]] or [0]
