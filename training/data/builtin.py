"""Sets that ship within scikit-learn, so that every node has them."""

from __future__ import annotations

import numpy as np

from meshkit.errors import InvalidInputError
from training.data.samples import Piece

SETS = ("digits", "iris", "wine", "breast_cancer", "diabetes")
"""Their names. digits: 1,797 images of 8 x 8, ten labels; diabetes: a number to be foretold; the others: labels."""


def builtin(name: str) -> Piece:
    """x as FP32, brought to a mean of 0 and a deviation of 1 a column (digits: to 0..1), and y. Raises."""
    if name not in SETS:
        raise InvalidInputError(
            f"there is no built-in set {name!r}", hint=f"known: {', '.join(SETS)}", reason="BAD_DATA"
        )
    try:
        from sklearn import datasets
    except ImportError:
        raise InvalidInputError(
            f"the built-in set {name!r} needs scikit-learn, which this node lacks",
            hint="pip install 'aimesh[train]', or upload the data as shards",
            reason="BAD_DATA",
        ) from None
    x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    x = x / 16.0 if name == "digits" else (x - x.mean(0)) / x.std(0)
    y = y.astype(np.float32)[:, None] if name == "diabetes" else y.astype(np.int64)
    if name == "diabetes":
        y = (y - y.mean()) / y.std()
    return Piece(name, {"x": x.astype(np.float32), "y": y})
