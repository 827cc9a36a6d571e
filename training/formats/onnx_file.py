"""ONNX models, by the fields of onnx.proto: operators, initialisers (their values are skipped), inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from training.findings import Findings, Tensor
from training.formats.bounded import Window, broken, printable
from training.formats.torch_tensors import BYTES_OF
from training.formats.wire import Message, message_in, top_level

# onnx.proto, TensorProto.DataType.
TYPES = {
    1: "FP32", 2: "UINT8", 3: "INT8", 4: "UINT16", 5: "INT16", 6: "INT32", 7: "INT64", 8: "BYTES", 9: "BOOL",
    10: "FP16", 11: "FP64", 12: "UINT32", 13: "UINT64", 14: "COMPLEX64", 15: "COMPLEX128", 16: "BF16", 17: "FP8",
    18: "FP8", 19: "FP8", 20: "FP8", 21: "UINT4", 22: "INT4", 23: "FP4",
}  # fmt: skip
# ModelProto, GraphProto, NodeProto, AttributeProto, TensorProto, ValueInfoProto: numbers of the fields read here.
_IR_VERSION, _GRAPH, _FUNCTIONS = 1, 7, 25
_MODEL_FIELDS = {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}
_NODE, _GRAPH_NAME, _INITIALISER, _INPUT, _OUTPUT = 1, 2, 5, 11, 12
_FUNCTION_NODE = 7
_WITH_WEIGHTS = ("TreeEnsemble", "Linear", "SVM")
_DEPTH = 8
_EXTERNAL = 1


def recognises(window: Window) -> bool:
    """Whether its fields are those of a ModelProto, ir_version first, with a graph; the file may be cut short."""
    head = window.head(2)
    if len(head) < 2 or head[0] != _IR_VERSION << 3 or not 1 <= head[1] <= 32:
        return False
    fields = top_level(window)
    return fields.keys() <= _MODEL_FIELDS and fields.get(_GRAPH) is not None


def read(window: Window, path: Path) -> Findings:
    """Tensors, operators, inputs and outputs. Raises InvalidInputError when it is broken or cut short."""
    model = message_in(window)
    graph = next(model.all(_GRAPH), None)
    if graph is None:
        raise broken(f"{path.name} begins as ONNX but has no graph")
    weights = [_initialiser(one) for one in graph.all(_INITIALISER)]
    tensors = tuple(tensor for tensor, _ in weights)
    names = {tensor.name for tensor in tensors}
    graphs = _Graphs()
    graphs.add(graph.all(_NODE))
    for function in model.all(_FUNCTIONS):
        graphs.add(function.all(_FUNCTION_NODE))
    found = Findings(
        "onnx",
        "onnx",
        graph.text(_GRAPH_NAME),
        tensors=(*tensors, *graphs.constants),
        operators=frozenset(graphs.operators),
        inputs=tuple(one for one in map(_value, graph.all(_INPUT)) if one.name not in names),
        outputs=tuple(map(_value, graph.all(_OUTPUT))),
    )
    places = [place for _, place in weights if place is not None]
    return found.warn(*(warning for place in places if (warning := _external(place, path))))


@dataclass
class _Graphs:
    """What the nodes of graphs and of the bodies of their loops and branches say."""

    operators: set[str] = field(default_factory=set)
    constants: list[Tensor] = field(default_factory=list)

    def add(self, nodes: Iterator[Message], depth: int = 0) -> None:
        """NodeProto: output 2, op_type 4, attribute 5."""
        for node in nodes:
            texts = {one.number: one.text() for one in node.fields() if one.number in (2, 4)}
            operator = texts.get(4, "")
            self.operators.add(operator)
            for attribute in node.all(5):
                self._attribute(attribute, operator, texts.get(2, ""), depth)

    def _attribute(self, attribute: Message, operator: str, output: str, depth: int) -> None:
        """AttributeProto: name 1, t 5, g 6, floats 7, ints 8, strings 9. Trees are lists of floats and ints."""
        name, floats = "", 0
        for one in attribute.fields():
            if one.number == 1:
                name = one.text()
            elif one.number == 5 and one.message is not None and operator == "Constant":
                self._constant(output, one.message)
            elif one.number == 6 and one.message is not None and depth < _DEPTH:
                self.add(one.message.all(_NODE), depth + 1)
            elif one.number == 7:
                floats += one.repeat if one.message is None else one.message.size // 4
            elif one.number in (8, 9):
                break  # may be millions, and nothing of interest comes after
        if floats and operator.startswith(_WITH_WEIGHTS):
            self.constants.append(Tensor(f"{operator}.{name}", "FP32", (floats,)))

    def _constant(self, output: str, message: Message) -> None:
        """Some exporters write weights as constants; single numbers are no weights."""
        tensor, _ = _initialiser(message)
        if tensor.count > 1:
            self.constants.append(Tensor(output, tensor.data_type, tensor.shape))


def _initialiser(tensor: Message) -> tuple[Tensor, dict[str, str] | None]:
    """A tensor and, when its bytes lie in another file, where. Raises InvalidInputError when bytes are missing.

    TensorProto: dims 1, data_type 2, name 8, raw_data 9, external_data 13, data_location 14.
    """
    last = {one.number: one for one in tensor.fields() if one.number in (2, 8, 9, 14)}
    kind, name = last[2].value if 2 in last else 0, last[8].text() if 8 in last else ""
    shape = tuple(tensor.numbers(1))
    found = Tensor(name, TYPES.get(kind, f"type {kind}"), shape)
    need = found.count * BYTES_OF.get(found.data_type, 0)
    if 14 in last and last[14].value == _EXTERNAL:
        place = {entry.text(1): entry.text(2) for entry in tensor.all(13)}
        return found, {**place, "name": name, "need": str(need)}
    raw = last[9].message if 9 in last else None
    if raw is not None and raw.size < need:
        raise broken(f"initialiser {printable(name)!r} of shape {list(shape[:8])} has {raw.size} bytes of {need}")
    return found, None


def _external(place: dict[str, str], path: Path) -> str:
    """What is wrong with where a weight lies outside the model; empty when nothing is."""
    location = place.get("location", "")
    name = printable(place["name"])
    parts = PurePosixPath(location).parts
    if not location or location.startswith("/") or ".." in parts or "\\" in location:
        return f"the weights of {name!r} are outside the model's directory: {printable(location)!r}"
    try:
        held = (path.parent / location).stat().st_size
        offset, length = int(place.get("offset", "0")), int(place.get("length", place["need"]))
    except (OSError, ValueError):
        return f"the weights of {name!r} are missing: no file {printable(location)!r} beside the model"
    if offset < 0 or length < int(place["need"]) or offset + length > held:
        return f"the weights of {name!r} are cut short: {printable(location)!r} has {held} bytes"
    return ""


def _value(info: Message) -> Tensor:
    """ValueInfoProto: name 1, type 2 {tensor_type 1 {elem_type 1, shape 2 {dim 1 {dim_value 1, dim_param 2}}}}."""
    tensor = next((inner for kind in info.all(2) for inner in kind.all(1)), None)
    if tensor is None:
        return Tensor(info.text(1), "", ())  # a sequence or a map
    kinds = [one.value for one in tensor.fields() if one.number == 1]
    shape = tuple(_dimension(one) for shape in tensor.all(2) for one in shape.all(1))
    return Tensor(info.text(1), TYPES.get(kinds[-1] if kinds else 0, ""), shape)


def _dimension(dimension: Message) -> int:
    sizes = [one.signed for one in dimension.fields() if one.number == 1 and one.message is None]
    return sizes[-1] if sizes and sizes[-1] >= 0 else -1
