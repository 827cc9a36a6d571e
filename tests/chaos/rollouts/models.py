"""Versions of one model that say who they are, and what may be wrong with one."""

from __future__ import annotations

MODEL = "teller"
CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }, { name: "version", data_type: TYPE_STRING, dims: [ 1 ] }]
"""
_SOURCE = """
import time

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.kept = []

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            {does}
            version = pb_utils.Tensor("version", numpy.array([b"{version}"], dtype=object))
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", {answer}), version]))
        return answers
"""


def plain(version: str) -> str:
    """Adds one, and says which version did."""
    return _source(version)


def slow(version: str, seconds: float) -> str:
    """The same, and each request takes so much longer."""
    return _source(version, does=f"time.sleep({seconds})")


def tiring(version: str, seconds: float, after: int) -> str:
    """As fast as ever for so many requests of a replica, and so much slower from then on."""
    return _source(version, does=f"self.kept.append(None); time.sleep({seconds} * (len(self.kept) > {after}))")


def leaking(version: str, size: int, seconds: float) -> str:
    """As slow, and so many bytes a request are never given back."""
    return _source(version, does=f"time.sleep({seconds}); self.kept.append(numpy.ones({size}, dtype=numpy.uint8))")


def broken(version: str) -> str:
    """Its weights are broken: what it answers is wrong, and it answers as fast as ever."""
    return _source(version, answer="x * 1.5")


def _source(version: str, does: str = "pass", answer: str = "x + 1") -> str:
    return _SOURCE.format(version=version, does=does, answer=answer)
