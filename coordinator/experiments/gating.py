"""What an experiment's gates are given, kept so that whoever leads can judge it, and what they say."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Any

from aimesh.rollout.v1 import rollout_pb2
from coordinator.rollout.gates import judge
from coordinator.rollout.rego import PolicyError
from coordinator.rollout.verdict import Judgement
from coordinator.rollout.window import Window

_HALF = 0.5
"""The candidate's share of the requests: both are asked the same."""
_NOT_MEASURED = ("queue_ms",)
"""Of nobody's queue but that of the questions themselves."""


def encode(baseline: Window, candidate: Window) -> str:
    """Both as JSON."""
    return json.dumps({"baseline": asdict(baseline), "candidate": asdict(candidate)})


def decode(text: str) -> tuple[Window, Window]:
    """The baseline's and the candidate's, as they were encoded."""
    found = json.loads(text)
    return _window(found["baseline"]), _window(found["candidate"])


def verdict(gates: rollout_pb2.Gates, windows: str) -> Judgement:
    """What the gates say. Blocks for a second at most. A policy that cannot be run says nothing: a person decides."""
    before, now = decode(windows)
    try:
        found = judge(gates, before, now, share=_HALF, stages=1)
    except PolicyError as error:
        return Judgement(rollout_pb2.VERDICT_UNSPECIFIED, error.message, ())
    return replace(found, comparisons=tuple(each for each in found.comparisons if each.metric not in _NOT_MEASURED))


def _window(found: dict[str, Any]) -> Window:
    latency = {int(bucket): count for bucket, count in found.pop("latency").items()}
    trend = tuple((second, memory) for second, memory in found.pop("memory_trend"))
    return Window(**found, latency=latency, memory_trend=trend)
