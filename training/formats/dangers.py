"""Which names a pickle may import without being able to run code of whoever made it, and what to say of others.

The list is what torch's own weights_only loader takes, what NumPy writes for its arrays, and the classes of
scikit-learn, without those of its modules that hold no estimators but what they import from elsewhere. A name that is
not on it need not be hostile: a class of the person's own, say; but to load it is to trust it.
"""

from __future__ import annotations

import re
from typing import Any

from training.findings import DANGER
from training.formats.bounded import printable
from training.formats.symbolic import Global

HARMLESS = re.compile(
    r"collections (OrderedDict|defaultdict)"
    r"|(builtins|__builtin__) (set|frozenset|dict|list|tuple|int|float|complex|bool|str|bytes)"
    r"|(builtins|__builtin__) (bytearray|slice|range|object)"
    r"|(copyreg|copy_reg) _reconstructor"
    r"|_codecs encode"
    r"|numpy (dtype|ndarray|bool_|u?int(8|16|32|64)|float(16|32|64))"
    r"|numpy\._?core\.multiarray (_reconstruct|scalar)"
    r"|numpy\._?core\.numeric _frombuffer"
    r"|numpy\.random\._pickle (__randomstate_ctor|__bit_generator_ctor)"
    r"|numpy\.random\._mt19937 MT19937|numpy\.random\.mtrand RandomState"
    r"|numpy\.ma\.core (_mareconstruct|MaskedArray)"
    r"|joblib\.numpy_pickle NumpyArrayWrapper"
    r"|scipy\.sparse\._?\w+ \w+_(matrix|array)"
    r"|sklearn(?!\.(datasets|externals|conftest|utils\._joblib|utils\._testing)\b)(\.\w+)*"
    r" (_?[A-Z]\w*|newObj|__pyx_unpickle_\w+)"
    r"|torch\._utils _rebuild_(tensor|tensor_v2|tensor_v3|parameter|parameter_with_state)"
    r"|torch\._utils _rebuild_(qtensor|sparse_tensor|device_tensor_from_numpy)"
    r"|torch\._tensor _rebuild_from_type_v2"
    r"|torch\.nn\.parameter (Parameter|Buffer)"
    r"|torch\.storage (UntypedStorage|TypedStorage)"
    r"|torch (\w+Storage|device|Size|Tensor|[a-z]+\d+(_e\dm\d\w*)?|bool|half|double|float|int|long|short)"
    r"|torch (strided|per_\w+_affine)"
    r"|torch\.serialization _get_layout"
)  # fmt: skip
# Names that only a hostile file has, by module; the rest is unknown rather than known to be bad.
_BAD_MODULES = re.compile(
    r"os|posix|nt|subprocess|sys|socket|pty|runpy|shutil|importlib|ctypes|pickle|_pickle|marshal|code"
    r"|codeop|commands|webbrowser|platform|multiprocessing|threading|asyncio|http|urllib|requests|ftplib"
    r"|operator|_operator|functools|timeit|profile|cProfile|pdb|bdb|trace|pydoc|pip|tempfile|io|_io|types"
    r"|inspect|builtins|__builtin__|signal|ssl|telnetlib|smtplib|xmlrpc|zipimport|imp|gc|linecache|logging"
    r"|ensurepip|venv|distutils"
)
MOST_NAMED = 10


class Dangers:
    """Collects what a pickle would import or call that is not known to be harmless."""

    def __init__(self) -> None:
        self.globals: list[Global] = []
        self.warnings: list[str] = []
        self.calls = 0

    def on_import(self, module: Any, name: Any, offset: int) -> Global:
        """For the machine: notes an import."""
        if isinstance(module, str) and isinstance(name, str):
            found = Global(module, name, offset)
            if not HARMLESS.fullmatch(f"{module} {name}"):
                self._add(_of_import(found))
        elif module == "copyreg extension":
            found = Global("copyreg", f"extension {name}", offset)
            self._add(f"{DANGER}byte {offset} imports what number {name} stands for where it is loaded")
        else:
            found = Global("?", "?", offset)
            self._add(f"{DANGER}byte {offset} imports a name that is made up while it is loaded")
        self.globals.append(found)
        return found

    def on_call(self, what: Any, offset: int) -> None:
        """For the machine: notes a call, or a change of something that was not made by the pickle."""
        self.calls += 1
        if not isinstance(what, Global):
            self._add(f"{DANGER}byte {offset} calls or changes an object that is not its own")

    def unseen(self, why: str) -> None:
        """Notes that a part could not be followed."""
        self._add(f"{DANGER}not all of it can be looked at: {why}")

    def add_all(self, other: Dangers) -> None:
        """Notes what was found elsewhere."""
        for warning in other.warnings:
            self._add(warning)

    def _add(self, warning: str) -> None:
        if len(self.warnings) < MOST_NAMED and warning not in self.warnings:
            self.warnings.append(warning)


def _of_import(found: Global) -> str:
    name = printable(str(found))
    if _BAD_MODULES.fullmatch(found.module.partition(".")[0]):
        return f"{DANGER}it calls on {name} at byte {found.offset}: loading it runs commands"
    return (
        f"{DANGER}it needs {name} at byte {found.offset}, which is not known to be harmless: loading it runs that code"
    )
