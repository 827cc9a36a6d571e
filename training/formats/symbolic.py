"""What a pickle would build, worked out from its opcodes on a stack of symbols. Nothing is imported, called or built.

The stack follows Lib/pickle.py's _Unpickler, opcode by opcode. What would be an import becomes a Global, what would be
a call becomes a Made; dicts keep pairs in a list, because hashing deep keys out of a hostile file could go wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from training.formats.opcodes import NotAPickleError, Opcode, Opcodes


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """Something that would be imported."""

    module: str
    name: str
    offset: int

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Made:
    """What a call of `maker` with `arguments` would give, and what would then be put into it."""

    maker: Any
    arguments: Any
    states: list[Any] = field(default_factory=list)
    items: list[Any] = field(default_factory=list)
    pairs: list[tuple[Any, Any]] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Pairs:
    """A dict."""

    pairs: list[tuple[Any, Any]] = field(default_factory=list)

    def get(self, key: str) -> Any:
        """The last value under a key of text; None when there is none."""
        return next((value for one, value in reversed(self.pairs) if isinstance(one, str) and one == key), None)


@dataclass(frozen=True, eq=False, slots=True)
class Persistent:
    """An object kept outside the pickle, by its id."""

    id: Any


@dataclass(frozen=True, eq=False, slots=True)
class Array:
    """A NumPy array whose values lie outside the pickle's opcodes (joblib)."""

    data_type: str
    shape: tuple[int, ...]


Import = Callable[[Any, Any, int], Global]
"""Told of each global: module, name (anything that is not text was made up while loading) and offset."""
Call = Callable[[Any, int], None]
"""Told of each call and of each change of an object: what is called or changed, and where."""
Built = Callable[[Made, Opcodes], Any]
"""Told of each object that got its state; gives what takes its place."""

_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_IGNORED = ("PROTO", "FRAME", "READONLY_BUFFER")


class Machine:
    """Follows one pickle up to its STOP. The memo is its own, as each pickle of a file has its own."""

    def __init__(self, opcodes: Opcodes, on_import: Import, on_call: Call, on_build: Built | None = None) -> None:
        self._opcodes, self._import, self._call, self._build = opcodes, on_import, on_call, on_build
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The symbol of what would be loaded. Raises NotAPickleError."""
        while (opcode := self._opcodes.next()).name != "STOP":
            self._step(opcode)
        return self._pop()

    def _step(self, opcode: Opcode) -> None:
        name = opcode.name
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _HANDLERS:
            _HANDLERS[name](self, opcode)
        elif name not in _IGNORED:
            self._stack.append(opcode.argument)  # a number or a string

    def _pop(self) -> Any:
        if not self._stack:
            raise NotAPickleError(f"its stack is empty before byte {self._opcodes.source.position}")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack:
            raise NotAPickleError(f"its stack is empty before byte {self._opcodes.source.position}")
        return self._stack[-1]

    def _to_mark(self) -> list[Any]:
        if not self._outer:
            raise NotAPickleError(f"a mark is missing before byte {self._opcodes.source.position}")
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _mark(self, _: Opcode) -> None:
        self._outer.append(self._stack)
        self._stack = []

    def _drop(self, _: Opcode) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._to_mark()

    def _drop_mark(self, _: Opcode) -> None:
        self._to_mark()

    def _copy(self, _: Opcode) -> None:
        self._stack.append(self._top())

    def _empty_list(self, _: Opcode) -> None:
        self._stack.append([])

    def _empty_dict(self, _: Opcode) -> None:
        self._stack.append(Pairs())

    def _list(self, _: Opcode) -> None:
        self._stack_after(self._to_mark())

    def _tuple(self, _: Opcode) -> None:
        self._stack_after(tuple(self._to_mark()))

    def _short_tuple(self, opcode: Opcode) -> None:
        items = [self._pop() for _ in range(int(opcode.name[-1]))]
        self._stack.append(tuple(reversed(items)))

    def _dict(self, _: Opcode) -> None:
        self._stack_after(Pairs(_paired(self._to_mark())))

    def _stack_after(self, value: Any) -> None:
        self._stack.append(value)

    def _append(self, opcode: Opcode) -> None:
        items = [self._pop()] if opcode.name == "APPEND" else self._to_mark()
        target = self._top()
        if isinstance(target, list):
            target.extend(items)
        elif isinstance(target, Made):
            target.items.extend(items)
        else:
            self._call(target, opcode.offset)

    def _set(self, opcode: Opcode) -> None:
        items = [self._pop(), self._pop()][::-1] if opcode.name == "SETITEM" else self._to_mark()
        target = self._top()
        if isinstance(target, Pairs | Made):
            target.pairs.extend(_paired(items))
        else:
            self._call(target, opcode.offset)

    def _put(self, opcode: Opcode) -> None:
        self._memo[len(self._memo) if opcode.name == "MEMOIZE" else opcode.argument] = self._top()

    def _get(self, opcode: Opcode) -> None:
        if opcode.argument not in self._memo:
            raise NotAPickleError(f"byte {opcode.offset} names memo {opcode.argument}, which is not set")
        self._stack.append(self._memo[opcode.argument])

    def _global(self, opcode: Opcode) -> None:
        module, name = opcode.argument
        self._stack.append(self._import(module, name, opcode.offset))

    def _stack_global(self, opcode: Opcode) -> None:
        name, module = self._pop(), self._pop()
        self._stack.append(self._import(module, name, opcode.offset))

    def _extension(self, opcode: Opcode) -> None:
        self._stack.append(self._import("copyreg extension", opcode.argument, opcode.offset))

    def _reduce(self, opcode: Opcode) -> None:
        arguments, maker = self._pop(), self._pop()
        self._make(maker, arguments, opcode)

    def _new_with_names(self, opcode: Opcode) -> None:
        names, arguments, maker = self._pop(), self._pop(), self._pop()
        self._make(maker, (arguments, names), opcode)

    def _instance(self, opcode: Opcode) -> None:
        module, name = opcode.argument
        arguments = tuple(self._to_mark())
        self._make(self._import(module, name, opcode.offset), arguments, opcode)

    def _object(self, opcode: Opcode) -> None:
        items = self._to_mark()
        if not items:
            raise NotAPickleError(f"OBJ without a class at byte {opcode.offset}")
        self._make(items[0], tuple(items[1:]), opcode)

    def _make(self, maker: Any, arguments: Any, opcode: Opcode) -> None:
        self._call(maker, opcode.offset)
        self._stack.append(Made(maker, arguments))

    def _state(self, opcode: Opcode) -> None:
        state, target = self._pop(), self._top()
        if not isinstance(target, Made):
            self._call(None, opcode.offset)
            return
        target.states.append(state)
        if self._build is not None:
            self._stack[-1] = self._build(target, self._opcodes)

    def _persistent(self, opcode: Opcode) -> None:
        self._stack.append(Persistent(self._pop() if opcode.name == "BINPERSID" else opcode.argument))


_HANDLERS: dict[str, Callable[[Machine, Opcode], None]] = {
    **dict.fromkeys(("EMPTY_LIST", "EMPTY_SET"), Machine._empty_list),
    **dict.fromkeys(("LIST", "FROZENSET"), Machine._list),
    **dict.fromkeys(("TUPLE1", "TUPLE2", "TUPLE3"), Machine._short_tuple),
    **dict.fromkeys(("APPEND", "APPENDS", "ADDITEMS"), Machine._append),
    **dict.fromkeys(("SETITEM", "SETITEMS"), Machine._set),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine._get),
    **dict.fromkeys(("EXT1", "EXT2", "EXT4"), Machine._extension),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine._reduce),
    **dict.fromkeys(("PERSID", "BINPERSID"), Machine._persistent),
    "MARK": Machine._mark,
    "POP": Machine._drop,
    "POP_MARK": Machine._drop_mark,
    "DUP": Machine._copy,
    "EMPTY_DICT": Machine._empty_dict,
    "TUPLE": Machine._tuple,
    "DICT": Machine._dict,
    "GLOBAL": Machine._global,
    "STACK_GLOBAL": Machine._stack_global,
    "NEWOBJ_EX": Machine._new_with_names,
    "INST": Machine._instance,
    "OBJ": Machine._object,
    "BUILD": Machine._state,
}


def _paired(items: list[Any]) -> list[tuple[Any, Any]]:
    if len(items) % 2:
        raise NotAPickleError("a dict has a key without a value")
    return list(zip(items[::2], items[1::2], strict=True))


def walk(root: Any, most: int = 200_000) -> Iterator[tuple[str, Any]]:
    """Every container and object below one with the names that lead to it, each once; at most `most`."""
    seen = {id(root)}
    todo: list[tuple[str, Any]] = [("", root)]
    while todo:
        path, value = todo.pop()
        yield path, value
        for key, inner in reversed(list(_below(value))):
            if isinstance(inner, _CONTAINERS) and id(inner) not in seen and len(seen) < most:
                seen.add(id(inner))
                todo.append((_join(path, key), inner))


_CONTAINERS = (tuple, list, Pairs, Made, Array)


def _below(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, tuple | list):
        yield from enumerate(value)
    elif isinstance(value, Pairs):
        yield from value.pairs
    elif isinstance(value, Made):
        yield from ((None, state) for state in value.states)
        yield from value.pairs
        yield from enumerate(value.items)
        yield None, value.arguments


def _join(path: str, key: Any) -> str:
    if key is None:
        return path
    text = key if isinstance(key, str) else str(key) if isinstance(key, int) and -1 < key < 1 << 40 else "?"
    return f"{path}.{text}"[-200:] if path else text[-200:]
