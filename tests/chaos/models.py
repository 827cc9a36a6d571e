"""Models that scenarios deploy: one that works, and those that do not."""

from __future__ import annotations

CONFIG = """
backend: "python"
max_batch_size: 0
input [{ name: "x", data_type: TYPE_FP32, dims: [ -1 ] }]
output [{ name: "y", data_type: TYPE_FP32, dims: [ -1 ] }, { name: "node", data_type: TYPE_STRING, dims: [ 1 ] }]
"""
_ADDER = """
import os
import pathlib
import resource
import signal

import numpy
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.node = pathlib.Path(args["model_repository"]).parents[1].name.encode()
        {begins}

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            node = pb_utils.Tensor("node", numpy.array([self.node], dtype=object))
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x + 1), node]))
        return answers
"""
PLAIN = _ADDER.format(begins="")
"""Adds one, and says which node did."""
RAISES = _ADDER.format(begins='raise RuntimeError("no such thing as these weights")')
HUNGRY = _ADDER.format(
    begins="resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30)); self.weights = bytearray(4 << 30)"
)
"""Allocates more than it may have."""
KILLED = _ADDER.format(begins="os.kill(os.getpid(), signal.SIGKILL)")
"""Ends as the kernel's out-of-memory killer ends a process."""
LARGE = _ADDER.format(begins="self.weights = numpy.ones(640 << 20, dtype=numpy.uint8)")
"""Takes more of a node than a worker of a job leaves."""
