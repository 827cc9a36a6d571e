"""Reads torch's zip archives without torch and without running anything in them, and refuses what would run code.

`torch.export.load` unpickles some records, gives shape expressions to sympy's `eval`, compiles guards, and writes node
and parameter names into Python source; so all of those are held here against what an honest export writes.
`torch.jit.load` runs TorchScript's own interpreter and no Python.
"""

from __future__ import annotations

import ast
import io
import json
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from meshkit.errors import InvalidInputError

# What torch's own weights_only loader lets a pickle name, less what no export of plain tensors needs.
_PICKLE_GLOBALS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|tensor_v3|parameter)|torch\._tensor _rebuild_from_type_v2"
    r"|torch (\w+Storage|device|Size|Tensor)|torch\.storage UntypedStorage|torch\.nn\.parameter Parameter"
    r"|collections OrderedDict|builtins set"
)
_RECORDS = re.compile(
    r"models/[^/]+\.json|data/(weights|constants|sample_inputs)/[^/]+|archive_(format|version)|byteorder|version|\.data/\w+"
)
_TARGET = re.compile(r"torch\.ops\.\w+\.\w+(\.\w+)?|_operator\.\w+|math\.\w+|torch\.sym_\w+|torch\._sym_\w+")
_SEQUENCES = ("builtins.tuple", "builtins.list", None)
_MAPPINGS = ("builtins.dict", "collections.OrderedDict")
_PLAIN = re.compile(r"[\w.+-]*")
# Checked apart, or never made into code.
_OTHER_TEXT = ("target", "as_operator", "expr_str", "in_spec", "out_spec", "guards_code", "as_string", "as_strings")
_EXPRESSION = (
    ast.Expression, ast.Call, ast.Name, ast.Constant, ast.keyword, ast.Load, ast.BinOp, ast.UnaryOp, ast.BoolOp,
    ast.Compare, ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_GUARD = (*_EXPRESSION, ast.Subscript, ast.Attribute)
_GUARD_ATTRIBUTES = ("size", "shape", "stride", "storage_offset", "dim", "ndim")
# Classes of sympy, and of torch/utils/_sympy/functions.py, that stand for numbers and comparisons of sizes.
_EXPRESSION_CALL = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|IntTrueDiv|FloatTrueDiv"
    r"|PowByNatural|FloatPow|ModularIndexing|Where|ToFloat|TruncToInt|RoundToInt|CeilToInt|FloorToInt|Identity"
    r"|Eq|Ne|Lt|Le|Gt|Ge|And|Or|Not|Equality|Unequality|(Strict)?(Less|Greater)Than"
)


def records(path: Path) -> dict[str, str]:
    """Record name without the archive's own directory -> full name in the zip. Empty when it is no zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            # A file that was cut short may end in a smaller archive that lay within it.
            if min((member.header_offset for member in archive.infolist()), default=1):
                return {}
            return {name.partition("/")[2]: name for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError):
        return {}


def is_exported(names: dict[str, str]) -> bool:
    """Whether records are those of torch.export.save."""
    return "archive_format" in names and any(name.startswith("models/") for name in names)


def is_script(names: dict[str, str]) -> bool:
    """Whether records are those of torch.jit.save."""
    return "constants.pkl" in names and any(name.startswith("code/") for name in names)


def check_whole(path: Path) -> None:
    """Raises InvalidInputError when a record's bytes do not match its checksum, or two have the same name."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
            broken = archive.testzip() or next((name for name in names if names.count(name) > 1), None)
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        broken = str(error)
    if broken:
        raise InvalidInputError(f"{path.name} is cut short or broken at {broken}", hint="save or copy it again")


def read_exported(path: Path) -> dict[str, Any]:
    """The program (parsed model.json) of a safe torch.export archive. Raises InvalidInputError for anything else."""
    with zipfile.ZipFile(path) as archive:
        names = {name.partition("/")[2]: name for name in archive.namelist()}
        for name in names:
            if not _RECORDS.fullmatch(name):
                raise _unsafe(path, f"record {name} (compiled code or extra files)")
            if name.startswith("data/constants/") and "_obj_" in name:
                raise _unsafe(path, f"record {name} (an object of a custom class)")
        models = [name for name in names if name.startswith("models/")]
        if len(models) != 1:
            raise InvalidInputError(f"{path.name} holds {len(models)} programs, not one")
        _check_pickles(path, archive, names)
        tables = [name for name in names if name.startswith("data/") and name.endswith(".json")]
        for name in (*models, *tables):
            _check_program(path, json.loads(archive.read(names[name])))
        program: dict[str, Any] = json.loads(archive.read(names[models[0]]))
        return program


def _check_pickles(path: Path, archive: zipfile.ZipFile, names: dict[str, str]) -> None:
    for name, full in names.items():
        if not name.startswith("data/") or name.endswith(".json"):
            continue
        with archive.open(full) as record:
            if record.read(4) != b"PK\x03\x04":
                continue  # raw tensor bytes
        for found in _globals(archive.read(full)):
            if not _PICKLE_GLOBALS.fullmatch(found):
                raise _unsafe(path, f"record {name} (its pickle names {found})")


def _globals(record: bytes) -> Iterator[str]:
    with zipfile.ZipFile(io.BytesIO(record)) as inner:
        for name in inner.namelist():
            if name.endswith(".pkl"):
                for opcode, argument, _ in pickletools.genops(inner.read(name)):
                    if opcode.name in ("GLOBAL", "INST"):
                        yield str(argument)
                    elif opcode.name in ("STACK_GLOBAL", "EXT1", "EXT2", "EXT4"):
                        yield opcode.name


def _check_program(path: Path, program: Any) -> None:
    """Holds a program, or the list of its weights, against what may become code. Raises InvalidInputError."""
    checks: dict[str, tuple[str, Callable[[str], object]]] = {
        "target": ("operator", _TARGET.fullmatch),
        "as_operator": ("operator", _TARGET.fullmatch),
        "expr_str": ("shape expression", _is_expression),
        "in_spec": ("container in in_spec", _is_plain_tree),
        "out_spec": ("container in out_spec", _is_plain_tree),
        "guards_code": ("guard", _is_guard),
    }
    for key, value in _walk(program):
        if not _PLAIN.fullmatch(key):
            raise _unsafe(path, f"name {key!r}")
        for text in value if isinstance(value, list) else [value]:
            if not isinstance(text, str) or not text:
                continue
            if key in checks and not checks[key][1](text):
                raise _unsafe(path, f"{checks[key][0]} {text!r}")
            if key not in _OTHER_TEXT and not _PLAIN.fullmatch(text):
                raise _unsafe(path, f"{key} {text!r}")


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Every (key, value) at any depth, but for a node's `metadata`: text for people that never becomes code."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "metadata" or not _is_all_text(inner):
                yield key, inner
                yield from _walk(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _walk(inner)


def _is_all_text(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(inner, str) for inner in value.values())


def _is_expression(text: Any) -> bool:
    """Whether sympy's eval can meet nothing but calls of its own number and symbol classes."""
    return _only(text, _EXPRESSION) and all(
        isinstance(node.func, ast.Name) and _EXPRESSION_CALL.fullmatch(node.func.id) is not None
        for node in ast.walk(ast.parse(text, mode="eval"))
        if isinstance(node, ast.Call)
    )


def _is_guard(text: Any) -> bool:
    """Whether a guard only compares sizes."""
    return _only(text, _GUARD) and all(
        isinstance(node.func, ast.Attribute)
        for node in ast.walk(ast.parse(text, mode="eval"))
        if isinstance(node, ast.Call)
    )


def _only(text: Any, kinds: tuple[type[ast.AST], ...]) -> bool:
    if not isinstance(text, str) or len(text) > 10_000:
        return False
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(
        isinstance(node, kinds)
        and not (isinstance(node, ast.Name) and node.id.startswith("__"))
        and not (isinstance(node, ast.Attribute) and node.attr not in _GUARD_ATTRIBUTES)
        and not (isinstance(node, ast.Constant) and isinstance(node.value, str) and not node.value.isidentifier())
        for node in nodes
    )


def _is_plain_tree(text: str) -> bool:
    """Whether a pytree is made of tuples, lists, and dicts whose keys are names."""
    try:
        return _is_plain_node(json.loads(text)[1])
    except (ValueError, KeyError, TypeError, IndexError, RecursionError):
        return False


def _is_plain_node(node: dict[str, Any]) -> bool:
    if node["type"] in _MAPPINGS:
        keys = json.loads(node["context"])
        plain = isinstance(keys, list) and all(isinstance(key, str) and key.isidentifier() for key in keys)
    else:
        plain = node["type"] in _SEQUENCES and node["context"] in ("null", None)
    return plain and all(_is_plain_node(child) for child in node["children_spec"])


def _unsafe(path: Path, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{path.name} is refused because loading it could run code: {what}",
        hint="export the plain module again with torch.export.save",
        reason="UNSAFE_MODEL",
    )
