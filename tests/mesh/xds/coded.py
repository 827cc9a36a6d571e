"""A KServe server that ends a call as the caller asks, which no model of a real Triton could be made to do."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from aimesh.membership.v1 import membership_pb2
from aimesh.routing.v1 import routing_pb2
from tests.mesh.xds import harness

NAME, OLD, NEW = "m", "1.0.0", "2.0.0"
BOTH = (OLD, NEW)


class Coded(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # the package has no types
    """The request's id is empty, "sleep <seconds>", or a code and "early" (in place of an answer) or "late" (after)."""

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        what, _, how = request.id.partition(" ")
        if what == "sleep":
            time.sleep(float(how))
        elif how == "late":
            context.set_code(grpc.StatusCode[what])
        elif what:
            context.abort(grpc.StatusCode[what], "as asked")
        return service_pb2.ModelInferResponse(model_name=request.model_name)


@contextlib.contextmanager
def coded_server() -> Iterator[int]:
    """A server on 127.0.0.1; its port."""
    with futures.ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Coded(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield port
        server.stop(0).wait()


def node(number: int, version: str, port: int) -> membership_pb2.Node:
    """agent-<number>, which has the version ready at the port."""
    found = harness.node(number, None, {NAME: membership_pb2.MODEL_STATE_READY})
    found.report.models[0].version = version
    found.report.triton.grpc_port = port
    return found


def deployment(old: int, new: int) -> routing_pb2.Deployment:
    """Both versions with these weights; nothing is tried again, so that nothing that goes wrong stays hidden."""
    found = routing_pb2.Deployment(name=NAME)
    for version, weight in ((OLD, old), (NEW, new)):
        found.targets.add(version=version, replicas=1, weight=weight)
    found.policy.retry.max_retries = 0
    return found


def ask(channel: grpc.Channel, code: str = "", *headers: tuple[str, str], timeout_s: float = 10) -> str:
    """The code that a call ends with."""
    stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
    request = service_pb2.ModelInferRequest(model_name=NAME, id=code)
    try:
        stub.ModelInfer(request, metadata=headers, timeout=timeout_s)
    except grpc.RpcError as error:
        return str(error.code().name)
    return "OK"
