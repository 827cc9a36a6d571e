"""torch's zip archives: state dicts (torch.save), TorchScript and torch.export programs."""

from __future__ import annotations

import io
import re
from typing import Any

from training.findings import Findings, Tensor
from training.formats.bounded import broken, parse_json, printable
from training.formats.dangers import Dangers
from training.formats.pickles import Walk, follow
from training.formats.symbolic import Global, Made
from training.formats.torch_tensors import Stored, is_state_dict, stored_tensors
from training.formats.zips import MAGIC, Archive, archive_in

# torch/_export/serde/schema.py, ScalarType.
_SCALARS = {
    1: "UINT8", 2: "INT8", 3: "INT16", 4: "INT32", 5: "INT64", 6: "FP16", 7: "FP32", 8: "FP64", 9: "COMPLEX32",
    10: "COMPLEX64", 11: "COMPLEX128", 12: "BOOL", 13: "BF16", 28: "UINT16", 29: "FP8", 30: "FP8", 31: "FP8",
    32: "FP8", 34: "UINT32", 35: "UINT64",
}  # fmt: skip
_CALL = re.compile(rb"\b(?:torch|ops\.\w+)\.(\w+)\(")
_MOST_CODE = 64
_PICKLED = (".pkl", ".pt")


def records(archive: Archive) -> dict[str, str]:
    """Record name without the archive's own directory -> full name in the zip.

    Names of pickles in lower case: torch finds a.pkl also where the zip says A.PKL (miniz, mz_zip_reader_locate_file).
    """
    names = ((name.partition("/")[2], name) for name in archive.members)
    return {record.lower() if record.lower().endswith(_PICKLED) else record: name for record, name in names}


def is_torch(names: dict[str, str]) -> bool:
    """Whether records are those of one of torch's archives."""
    return "data.pkl" in names or "archive_format" in names or "constants.pkl" in names


def read(archive: Archive) -> Findings:
    """What kind of archive of torch it is, and what it holds. Raises InvalidInputError."""
    names = records(archive)
    if len(names) != len(archive.members) or len({name.partition("/")[0] for name in archive.members}) > 1:
        raise broken("its records have the same name twice, or lie in several directories: torch reads one of them")
    if "archive_format" in names and any(name.startswith("models/") for name in names):
        return _exported(archive, names)
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return _script(archive, names)
    if "data.pkl" not in names:
        raise broken("it has records of a torch archive, but no program and no data.pkl")
    return of_saved(_walk(archive, names["data.pkl"]), archive, names)


def of_saved(walk: Walk, archive: Archive | None, names: dict[str, str]) -> Findings:
    """What torch.save wrote, zip or not: a state dict, a checkpoint with one in it, or a whole module."""
    if walk.problem and not walk.dangers.warnings:
        raise broken(f"its pickle is broken: {walk.problem}")
    root = walk.roots[-1 if len(walk.roots) < 2 else 3] if walk.roots else None
    stored = stored_tensors(root) if not walk.problem else []
    if archive is not None:
        _check_storages(archive, names, stored)
    found = Findings(
        "state_dict", "pytorch", architecture=_class_of(root), tensors=tuple(one.tensor for one in stored)
    ).warn(*walk.dangers.warnings)
    if not walk.problem and not is_state_dict(root):
        found = found.warn("it holds a whole object, not a state dict: save model.state_dict(), or export the module")
    return found


def _walk(archive: Archive, name: str) -> Walk:
    data = archive.read(name)
    return follow(io.BytesIO(data), len(data), joblib=False)


def _class_of(root: Any) -> str:
    if isinstance(root, Made) and isinstance(root.maker, Global) and not is_state_dict(root):
        return root.maker.name
    return ""


def _check_storages(archive: Archive, names: dict[str, str], stored: list[Stored], folder: str = "data/") -> None:
    for storage in {one.storage.key: one.storage for one in stored}.values():
        full = names.get(folder + storage.key)
        held = archive.members[full].file_size if full else 0
        if held < storage.size:
            raise broken(f"record {printable(folder + storage.key)!r} has {held} bytes of {storage.size}")


def _script(archive: Archive, names: dict[str, str]) -> Findings:
    """TorchScript. Its own reader, which imports no Python, reads its pickles: the names in them are its own."""
    walks = {folder: _walk(archive, names[name]) for name, folder in _PICKLES.items() if name in names}
    tensors: list[Tensor] = []
    for folder, walk in walks.items():
        if walk.problem:
            raise broken(f"its pickle is broken: {walk.problem}")
        stored = stored_tensors(walk.roots[0])
        _check_storages(archive, names, stored, folder)
        tensors += [one.tensor for one in stored]
    code = [full for name, full in names.items() if name.startswith("code/") and name.endswith(".py")]
    operators = {call.decode() for full in code[:_MOST_CODE] for call in _CALL.findall(archive.read(full))}
    root = walks["data/"].roots[0] if "data/" in walks else None
    return Findings(
        "torchscript", "pytorch", _class_of(root), tensors=tuple(tensors), operators=frozenset(map(_plain, operators))
    )


_PICKLES = {"data.pkl": "data/", "constants.pkl": "constants/"}


def _plain(operator: str) -> str:
    """aten's `_convolution` and `conv2d_` are `convolution` and `conv2d` here."""
    return operator.strip("_")


def _exported(archive: Archive, names: dict[str, str]) -> Findings:
    model = next(full for name, full in names.items() if name.startswith("models/"))
    program = parse_json(archive.read(model), "the program")
    dangers = _inner_pickles(archive, names)
    try:
        graph, signature = program["graph_module"]["graph"], program["graph_module"]["signature"]
        values, weights = graph["tensor_values"], _weights(archive, names)
        taken = [one["user_input"]["arg"] for one in signature["input_specs"] if "user_input" in one]
        given = [one["user_output"]["arg"] for one in signature["output_specs"] if "user_output" in one]
        found = Findings(
            "torch_export",
            "pytorch",
            _module_of(graph["nodes"]),
            tensors=weights,
            operators=frozenset(_plain(one["target"].split(".")[-2]) for one in graph["nodes"] if "." in one["target"]),
            inputs=tuple(_value(one["as_tensor"]["name"], values) for one in taken if "as_tensor" in one),
            outputs=tuple(_value(one["as_tensor"]["name"], values) for one in given if "as_tensor" in one),
        )
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise broken(
            f"its program is not as torch.export writes it: {type(error).__name__} {str(error)[:80]}"
        ) from None
    return found.warn(*dangers.warnings)


def _weights(archive: Archive, names: dict[str, str]) -> tuple[Tensor, ...]:
    found = []
    for table in (name for name in names if re.fullmatch(r"data/weights/[^/]*_config\.json", name)):
        config = parse_json(archive.read(names[table]), table)["config"]
        for name, one in config.items():
            found.append(_tensor(name, one["tensor_meta"]))
            if f"data/weights/{one['path_name']}" not in names:
                raise broken(f"the weights of {printable(name)!r} are not in it")
    return tuple(found)


def _tensor(name: str, meta: dict[str, Any]) -> Tensor:
    sizes = [one.get("as_int", -1) for one in meta["sizes"]]
    if not all(type(size) is int and abs(size) < 1 << 63 for size in sizes):
        raise broken(f"tensor {printable(name)!r} has no plain shape")
    return Tensor(str(name), _SCALARS.get(meta["dtype"], ""), tuple(sizes))


def _value(name: str, values: dict[str, Any]) -> Tensor:
    return _tensor(name, values[name])


def _module_of(nodes: list[dict[str, Any]]) -> str:
    """The class of the exported module, which each node's metadata names first: `L__self__,,package.Class;...`."""
    for node in nodes[:100]:
        outer = str(node.get("metadata", {}).get("nn_module_stack", "")).partition(";")[0].split(",")
        if len(outer) == 3:
            return outer[2].rpartition(".")[2]
    return ""


def _inner_pickles(archive: Archive, names: dict[str, str]) -> Dangers:
    """torch.export.load unpickles some records, which are archives of torch.save themselves."""
    dangers = Dangers()
    for name, full in names.items():
        if name.startswith("data/") and not name.endswith(".json") and archive.head(full, 4) == MAGIC:
            _inner(archive, full, dangers)
        elif name.endswith(_PICKLED):  # torch.load would take it for an archive of torch.save
            _add(_walk(archive, full), full, dangers)
    return dangers


def _inner(archive: Archive, full: str, dangers: Dangers) -> None:
    record = archive.read(full)
    with archive_in(io.BytesIO(record), len(record), printable(full)) as inner:
        for name in inner.members:
            if name.lower().endswith(".pkl"):
                _add(_walk(inner, name), full, dangers)


def _add(walk: Walk, record: str, dangers: Dangers) -> None:
    dangers.add_all(walk.dangers)
    if walk.problem:
        dangers.unseen(f"{printable(record)}: {walk.problem}")
