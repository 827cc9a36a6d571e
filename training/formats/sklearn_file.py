"""scikit-learn estimators in pickles and joblib dumps: class, fitted arrays, features and classes, from symbols."""

from __future__ import annotations

import re
from typing import Any

from training.findings import Findings, Tensor
from training.formats.arrays import array_of, is_size
from training.formats.bounded import broken
from training.formats.pickles import Walk
from training.formats.symbolic import Global, Made, Pairs, walk

# By the module's part after sklearn.
_FAMILIES = (
    (r"ensemble\._(forest|gb|hist_gradient_boosting\.\w+|iforest)|tree\._classes", "trees"),
    (r"linear_model\..*|discriminant_analysis|svm\._classes (LinearSV[CR])|cross_decomposition\..*", "linear"),
    (r"svm\._classes .*|gaussian_process\..*|kernel_ridge", "kernel"),
    (r"neighbors\..*", "neighbours"),
    (r"naive_bayes", "bayes"),
    (r"neural_network\..*", "feed-forward"),
    (r"cluster\..*|mixture\..*", "clustering"),
    (r"decomposition\..*|manifold\..*", "decomposition"),
    (r"preprocessing\..*|feature_extraction\..*|impute\..*|feature_selection\..*|compose\..*", "preprocessing"),
)
_STEPS_DEEP = 8


def class_of(symbol: Any) -> Global | None:
    """The class that a symbol is an object of; None when it is no object."""
    if not isinstance(symbol, Made) or not isinstance(symbol.maker, Global):
        return None
    if symbol.maker.name == "_reconstructor" and isinstance(symbol.arguments, tuple) and symbol.arguments:
        first = symbol.arguments[0]
        return first if isinstance(first, Global) else None
    return symbol.maker


def is_estimator(found: Walk) -> bool:
    """Whether the pickle gives an object of a class of scikit-learn, or a container that holds one."""
    if any(one.module.partition(".")[0] == "sklearn" for one in found.dangers.globals):
        return True
    kind = class_of(found.roots[0]) if found.roots else None
    return kind is not None and kind.module.partition(".")[0] == "sklearn"


def read(found: Walk) -> Findings:
    """What the estimator is. Raises InvalidInputError when the pickle breaks off and is not dangerous anyway."""
    if found.problem and not found.dangers.warnings:
        raise broken(f"its pickle is broken: {found.problem}")
    root = found.roots[0] if found.roots else None
    kind = class_of(root)
    arrays = tuple(_arrays(root)) if root is not None and not found.problem else ()
    inputs, outputs = _signature(root)
    last = class_of(_last_step(root))
    return Findings(
        "sklearn",
        "scikit-learn",
        kind.name if kind else "",
        family=_family(last) if last else "",
        tensors=arrays,
        inputs=inputs,
        outputs=outputs,
    ).warn(*found.dangers.warnings, *_version(root))


def attribute(symbol: Any, name: str) -> Any:
    """An attribute of an object, from the state that it would be given; None when there is none."""
    if isinstance(symbol, Made):
        for state in reversed(symbol.states):
            pairs = state[0] if isinstance(state, tuple) and len(state) == 2 else state
            if isinstance(pairs, Pairs) and (value := pairs.get(name)) is not None:
                return value
    return None


def _arrays(root: Any) -> list[Tensor]:
    found = (array_of(path, symbol) for path, symbol in walk(root))
    return [one for one in found if one is not None and one.data_type != "BYTES" and one.count]


def _last_step(symbol: Any) -> Any:
    """The estimator at the end of a pipeline, or inside a search: what gives the answers."""
    for _ in range(_STEPS_DEEP):
        steps = attribute(symbol, "steps")
        inner = attribute(symbol, "best_estimator_")
        if isinstance(steps, list) and steps and isinstance(steps[-1], tuple) and len(steps[-1]) == 2:
            symbol = steps[-1][1]
        elif inner is not None:
            symbol = inner
        else:
            break
    return symbol


def _first_step(symbol: Any) -> Any:
    for _ in range(_STEPS_DEEP):
        steps = attribute(symbol, "steps")
        if not (isinstance(steps, list) and steps and isinstance(steps[0], tuple) and len(steps[0]) == 2):
            break
        symbol = steps[0][1]
    return symbol


def _signature(root: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """`X` of n_features_in_ columns; `y`, and for a classifier the probability of each of its classes."""
    features = next(
        (size for one in (root, _first_step(root)) if is_size(size := attribute(one, "n_features_in_")) and size > 0),
        None,
    )
    if features is None:
        return (), ()
    inputs = (Tensor("X", "FP64", (-1, features)),)
    last = _last_step(root)
    kind = class_of(last)
    classes = array_of("classes", attribute(last, "classes_"))
    if classes is not None and len(classes.shape) == 1:
        outputs = [Tensor("y", classes.data_type if classes.data_type in _SENT else "BYTES", (-1,))]
        outputs.append(Tensor("probabilities", "FP64", (-1, classes.shape[0])))
        return inputs, tuple(outputs)
    is_regressor = kind is not None and re.search(r"Regress|Ridge|Lasso|ElasticNet|SVR|Lars", kind.name) is not None
    return inputs, (Tensor("y", "FP64", (-1,)),) if is_regressor else ()


_SENT = ("BOOL", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "FP32", "FP64")


def _family(kind: Global) -> str:
    text = f"{kind.module.removeprefix('sklearn.')} {kind.name}"
    for pattern, family in _FAMILIES:
        if re.fullmatch(pattern, text) or re.fullmatch(pattern, text.partition(" ")[0]):
            return family
    return ""


def _version(root: Any) -> list[str]:
    version = attribute(root, "_sklearn_version")
    if isinstance(version, str) and re.fullmatch(r"[\w.+]{1,40}", version):
        return [f"made with scikit-learn {version}: load it with the same version"]
    return []
