"""Finding a user's trainer in the code that came with the job."""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshkit.errors import AimeshError, InvalidInputError


def find(entry: str, code: Path) -> Callable[..., Any]:
    """The class that MODULE:ATTRIBUTE names in the folder, which goes first on the import path.

    Raises InvalidInputError (BAD_TRAINER) with the line of the user's code where importing failed.
    """
    module_name, colon, attribute = entry.partition(":")
    if not colon or not module_name or not attribute.isidentifier():
        raise _bad(f"entry {entry!r} is not understood", "write it as MODULE:ATTRIBUTE, for example train:Trainer")
    if str(code) not in sys.path:
        sys.path.insert(0, str(code))
    importlib.invalidate_caches()
    with calling(f"importing {module_name}", code):
        module = importlib.import_module(module_name)
    if module.__file__ is None or not Path(module.__file__).resolve().is_relative_to(code.resolve()):
        raise _bad(
            f"entry {entry!r}: module {module_name} is not the job's own: {module.__file__ or 'a folder'}",
            f"there must be a {module_name.replace('.', '/')}.py in the job's code, of a name that no package has",
        )
    found = getattr(module, attribute, None)
    if not callable(found):
        has = ", ".join(sorted(name for name, value in vars(module).items() if isinstance(value, type))) or "none"
        raise _bad(f"entry {entry!r}: {module_name} has no class {attribute}", f"classes that it has: {has}")
    made: Callable[..., Any] = found
    return made


@contextmanager
def calling(what: str, code: Path | None = None) -> Iterator[None]:
    """Turns whatever the user's code raises into an InvalidInputError that says where; the mesh's own pass."""
    try:
        yield
    except AimeshError:
        raise
    except Exception as error:
        raise _bad(f"{what}: {said(error, code)}", "mend the job's code, and submit it again") from error


def said(error: BaseException, code: Path | None) -> str:
    """`TypeError: ... (train.py:12 in loss)`: an error with the last line of the user's code on its way."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if code is not None and Path(frame.filename).is_relative_to(code)]
    text = f"{type(error).__name__}: {error}".strip().removesuffix(":")
    if isinstance(error, SyntaxError) and error.filename:
        return f"{type(error).__name__}: {error.msg} ({Path(error.filename).name}:{error.lineno})"
    if not own:
        return text
    return f"{text} ({Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name})"


def _bad(message: str, hint: str) -> InvalidInputError:
    return InvalidInputError(message, hint=hint, reason="BAD_TRAINER")
