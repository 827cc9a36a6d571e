"""A study out of its database, for views."""

from __future__ import annotations

from tools.tuning.ledger import Ledger
from tools.tuning.view import FEWEST_FOR_IMPORTANCE, Study, value_of


def study_of(ledger: Ledger) -> Study:
    """The study as it stands, with importance when enough trials were completed to say something of it."""
    facts = ledger.facts()
    trials = ledger.trials()
    metric, prune_by = facts.get("metric", "value"), facts.get("prune_by", "loss")
    direction = ledger.study.direction.name.lower()
    values = [value for trial in trials if (value := value_of(trial)) is not None]
    enough = len(values) >= FEWEST_FOR_IMPORTANCE and len(set(values)) > 1
    sign = -1.0 if prune_by.endswith("loss") and direction == "maximize" else 1.0
    return Study(ledger.name, metric, direction, prune_by, sign, trials, ledger.importance() if enough else {})
