"""PyTorch programs: torch.export archives and TorchScript. Pickles and state dicts are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from aimesh.registry.v1 import registry_pb2
from inference.formats.source import (
    MIB,
    Description,
    Source,
    Wishes,
    check_device,
    check_keys,
    only_file,
    refuse_tensors,
    whole_number,
)
from inference.formats.torch_archive import check_whole, is_exported, is_script, read_exported, records
from inference.signature import tensor
from meshkit.errors import InvalidInputError

PARAMETERS = ("device", "n_threads")
_RUNTIME_BYTES = 400 * MIB  # measured: 330 to 380 for the stub of an exported program of no size to speak of
# torch/_export/serde/schema.py, ScalarType.
_TYPES = {
    1: "UINT8", 2: "INT8", 3: "INT16", 4: "INT32", 5: "INT64", 6: "FP16", 7: "FP32", 8: "FP64", 12: "BOOL",
    28: "UINT16", 34: "UINT32", 35: "UINT64",
}  # fmt: skip


def recognises(source: Source) -> bool:
    """Whether any file is one that torch writes, pickles included: those are then refused with the reason."""
    return any(_kind(source, name) for name in source.files)


def describe(source: Source, wishes: Wishes) -> Description:
    """Reads and checks the one program. Raises InvalidInputError.

    Memory: the file, of which nearly all is weights, and torch itself.
    """
    check_keys(wishes.parameters, PARAMETERS, "torch")
    whole_number(wishes.parameters, "n_threads", 1, 1, 1024)
    on_gpu = check_device(wishes.parameters)
    entry = only_file(source, [name for name in source.files if _kind(source, name)], "torch file")
    path, kind = source.path(entry), _kind(source, entry)
    if kind == "pickle":
        raise InvalidInputError(
            f"{path.name} is a pickle (torch.save): loading one can run any code, and a state dict has no program",
            hint="save the module with torch.export.save(torch.export.export(model, example_inputs), path)",
            reason="PICKLE_REFUSED",
        )
    check_whole(path)
    size = source.size([entry])
    return Description(
        files=(entry,),
        signature=_exported(path, wishes) if kind == "exported" else _script(path, wishes),
        requirements=registry_pb2.Requirements(
            memory_bytes=size + _RUNTIME_BYTES, gpu_memory_bytes=2 * size + _RUNTIME_BYTES if on_gpu else 0
        ),
        parameters={**wishes.parameters, "entry": entry, "kind": kind},
    )


def _kind(source: Source, name: str) -> str:
    names = records(source.path(name))
    if is_exported(names):
        return "exported"
    if is_script(names):
        return "script"
    # A pickle of protocol 2 or later begins with its protocol and ends with STOP.
    head = source.head(name, 2)
    return "pickle" if "data.pkl" in names or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05") else ""


def _script(path: Path, wishes: Wishes) -> registry_pb2.Signature:
    if not wishes.inputs or not wishes.outputs:
        raise InvalidInputError(
            f"{path.name} is TorchScript, which does not say its tensors' types and shapes",
            hint="state every input and output in order, as name:FP32:-1x3, or push a torch.export program",
            reason="SIGNATURE_MISSING",
        )
    return registry_pb2.Signature(inputs=wishes.inputs, outputs=wishes.outputs)


def _exported(path: Path, wishes: Wishes) -> registry_pb2.Signature:
    """Inputs by the names of forward's arguments; outputs by the keys of a dict, else output_0, output_1 ..."""
    refuse_tensors(wishes, "torch (exported program)")
    program = read_exported(path)
    try:
        module = program["graph_module"]
        values = module["graph"]["tensor_values"]
        inputs = [name for spec in module["signature"]["input_specs"] for name in _input(spec)]
        outputs = [
            _argument(spec["user_output"]["arg"])
            for spec in module["signature"]["output_specs"]
            if "user_output" in spec
        ]
        names = _output_names(module["module_call_graph"][0]["signature"]["out_spec"], len(outputs))
        return registry_pb2.Signature(
            inputs=[_spec(name, values[name]) for name in inputs],
            outputs=[_spec(name, values[value]) for name, value in zip(names, outputs, strict=True)],
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InvalidInputError(
            f"{path.name}: its program is not understood: {error!r}", hint="export it again with torch 2.7 or later"
        ) from None


def _input(spec: dict[str, Any]) -> list[str]:
    """Names of the tensors that one input specification adds to the arguments: one or none."""
    if "constant_input" in spec:
        raise InvalidInputError(
            f"the program takes the constant {spec['constant_input'].get('name')!r} beside its tensors",
            hint="export a module whose forward takes and gives tensors only",
        )
    return [_argument(spec["user_input"]["arg"])] if "user_input" in spec else []


def _argument(argument: dict[str, Any]) -> str:
    if "as_tensor" not in argument:
        kind = next(iter(argument), "nothing")
        raise InvalidInputError(
            f"the program takes or gives {kind.removeprefix('as_')} where a tensor is needed",
            hint="export a module whose forward takes and gives tensors only",
        )
    return str(argument["as_tensor"]["name"])


def _spec(name: str, meta: dict[str, Any]) -> registry_pb2.TensorSpec:
    if meta["dtype"] not in _TYPES:
        raise InvalidInputError(
            f"tensor {name!r} has an element type that cannot be sent", hint="cast it, for example to float32"
        )
    return tensor(name, _TYPES[meta["dtype"]], [int(size.get("as_int", -1)) for size in meta["sizes"]])


def _output_names(out_spec: str, count: int) -> list[str]:
    _, tree = json.loads(out_spec)
    if tree["type"] == "builtins.dict" and all(child["type"] is None for child in tree["children_spec"]):
        return [str(key) for key in json.loads(tree["context"])]
    return [f"output_{index}" for index in range(count)]
