"""SCAFFOLD's control variates of a node's clients, on its disk: they outlive the attempt, for they are the job's."""

from __future__ import annotations

from pathlib import Path

from meshkit.files import write_atomically
from training.federated.wire import Array, Tensors

KEPT = 4
"""Newest rounds whose variates stay: so many may be made again after the aggregator's node is lost."""


class Variates:
    """One file a client and round. The aggregator says after which round's a client goes on."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the job's on this node, for all attempts."""
        self._folder = folder

    def load(self, client: int, counted: int, zeros: Tensors) -> dict[str, Array]:
        """The variate after a round; zeros at the first, and when it is not on this disk or of another model."""
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            found: dict[str, Array] = load_file(self._path(client, counted))
        except (OSError, SafetensorError):
            return dict(zeros)
        same = {name: (array.shape, array.dtype) for name, array in found.items()} == {
            name: (array.shape, array.dtype) for name, array in zeros.items()
        }
        return found if same else dict(zeros)

    def save(self, client: int, number: int, counted: int, tensors: Tensors) -> None:
        """Keeps the variate of a round whose update is about to be sent, beside the one that counts and some before.

        Raises OSError.
        """
        from safetensors.numpy import save

        path = self._path(client, number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({name: array.copy() for name, array in tensors.items()}))
        rounds = sorted(int(other.stem) for other in path.parent.glob("*.safetensors"))
        for old in rounds[:-KEPT]:
            if old not in (number, counted):
                self._path(client, old).unlink(missing_ok=True)

    def _path(self, client: int, number: int) -> Path:
        return self._folder / str(client) / f"{number}.safetensors"
