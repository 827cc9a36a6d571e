"""What an agent may say of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from aimesh.membership.v1 import membership_pb2
from coordinator.hello import check_hello
from meshkit.errors import InvalidInputError

Change = Callable[[membership_pb2.Hello], object]


def hello() -> membership_pb2.Hello:
    return membership_pb2.Hello(
        node_id="node-1",
        instance_id="one",
        address="127.0.0.1",
        capacity=membership_pb2.Capacity(memory_bytes=1),
        labels={"rack": "a"},
        runtimes={"onnx": "1.27.0"},
    )


def test_what_agents_say_is_taken() -> None:
    check_hello(hello())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda it: it.ClearField("address"), "hello.address is empty"),
        (lambda it: setattr(it, "address", "host.example"), "'host.example' is no IP address"),
        (lambda it: it.ClearField("capacity"), "memory_bytes is 0"),
        (lambda it: setattr(it, "port", 70_000), "hello.port is 70000"),
        (lambda it: setattr(it.report.triton, "grpc_port", 65_536), "report.triton.grpc_port is 65536"),
        (lambda it: it.labels.update({str(each): "" for each in range(128)}), "hello.labels has 129 entries"),
        (lambda it: it.labels.update({"": "x"}), "hello.labels has the name ''"),
        (lambda it: it.runtimes.update({"onnx": "1" * 509}), "'onnx' with a value of 509 characters"),
    ],
)
def test_what_cannot_be_is_refused_by_name(change: Change, named: str) -> None:
    said = hello()
    change(said)
    with pytest.raises(InvalidInputError, match=named):
        check_hello(said)
