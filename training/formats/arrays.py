"""NumPy's types and arrays as they stand in pickles: element type, shape and size, from symbols alone."""

from __future__ import annotations

import re
from typing import Any

from training.findings import Tensor
from training.formats.symbolic import Array, Global, Made

# NumPy's array-protocol codes -> KServe names.
_NAMES = {
    "b1": "BOOL", "u1": "UINT8", "u2": "UINT16", "u4": "UINT32", "u8": "UINT64", "i1": "INT8", "i2": "INT16",
    "i4": "INT32", "i8": "INT64", "f2": "FP16", "f4": "FP32", "f8": "FP64", "c8": "COMPLEX64", "c16": "COMPLEX128",
}  # fmt: skip
_CODE = re.compile(r"[<>|=]?([biufcmMSUVO])(\d{0,9})")
_ITEM_HAS_OBJECT = 0x01  # NPY_ITEM_HASOBJECT, numpy/core/include/numpy/ndarraytypes.h


def code_of(symbol: Any) -> str:
    """The code of a dtype ("f8", "V64", "O8"); empty when it is no plain dtype."""
    if not _is_made_by(symbol, r"numpy dtype") or not isinstance(symbol.arguments, tuple) or not symbol.arguments:
        return ""
    code = symbol.arguments[0]
    match = _CODE.fullmatch(code) if isinstance(code, str) else None
    return "".join(match.groups()) if match else ""


def item_size(symbol: Any) -> int | None:
    """Bytes an element takes; None when it holds Python objects, or cannot be told.

    A dtype's state is (version, order, subtype, names, fields, size, alignment, flags), numpy's descriptor.c,
    arraydescr_reduce; for text and records its size counts, not the code's.
    """
    code = code_of(symbol)
    if len(code) < 2 or code[0] == "O" or (state := _state(symbol)) is None:
        return None
    size = int(code[1:]) * (4 if code[0] == "U" else 1)
    if not state:
        return size
    if state[2] is not None or state[7] & _ITEM_HAS_OBJECT:
        return None
    return int(state[5]) if code[0] in "SUV" and state[5] >= 0 else size


def holds_objects(symbol: Any) -> bool:
    """Whether elements are Python objects and nothing else."""
    state = _state(symbol) if code_of(symbol)[:1] == "O" else None
    return state == () or (state is not None and bool(state[7] & _ITEM_HAS_OBJECT))


def _state(symbol: Made) -> tuple[Any, ...] | None:
    """The state that a dtype is given once; empty when it is given none, None when it is none that NumPy writes."""
    if not symbol.states:
        return ()
    state = symbol.states[0]
    if len(symbol.states) > 1 or not isinstance(state, tuple) or len(state) not in (8, 9):
        return None
    return state if is_size(state[5]) and is_size(state[7]) else None


def type_name(symbol: Any) -> str:
    """KServe's name of a dtype's elements; BYTES for text and objects; the code itself for records."""
    code = code_of(symbol)
    return "BYTES" if code[:1] in ("S", "U", "O") else _NAMES.get(code, code)


def array_of(name: str, symbol: Any) -> Tensor | None:
    """The array that a symbol stands for; None when it stands for something else."""
    if isinstance(symbol, Array):
        return Tensor(name, symbol.data_type, symbol.shape)
    if _is_made_by(symbol, r"numpy\._?core\.multiarray _reconstruct") and symbol.states:
        state = symbol.states[-1]
        if isinstance(state, tuple) and len(state) == 5 and (shape := shape_of(state[1])) is not None:
            return Tensor(name, type_name(state[2]), shape)
    if _is_made_by(symbol, r"numpy\._?core\.numeric _frombuffer"):
        arguments = symbol.arguments
        if isinstance(arguments, tuple) and len(arguments) >= 3 and (shape := shape_of(arguments[2])) is not None:
            return Tensor(name, type_name(arguments[1]), shape)
    return None


def shape_of(symbol: Any) -> tuple[int, ...] | None:
    """A tuple of whole numbers; None for anything else. NumPy's own numbers (a Made of `scalar`) do not count."""
    symbols = symbol if isinstance(symbol, tuple) else (symbol,)
    return symbols if all(map(is_size, symbols)) and len(symbols) <= 64 else None


def is_size(symbol: Any) -> bool:
    """Whether it is a whole number of a size that offsets and shapes can have (negative ones, too)."""
    return type(symbol) is int and abs(symbol) < 1 << 63


def _is_made_by(symbol: Any, pattern: str) -> bool:
    if not isinstance(symbol, Made) or not isinstance(symbol.maker, Global):
        return False
    return re.fullmatch(pattern, f"{symbol.maker.module} {symbol.maker.name}") is not None
