"""The xDS server over a real connection, in this process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import pytest
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from google.rpc import status_pb2

from coordinator.xds.client_routes import absent_listener
from coordinator.xds.server import SERVICE_NAME, XdsServer
from coordinator.xds.snapshot import CDS, EDS, LDS, RDS, Snapshot, pack
from meshkit.server import MeshServer

_DEADLINE_S = 5.0


class Client:
    """One ADS stream."""

    def __init__(self, channel: grpc.aio.Channel, name: str = "client") -> None:
        self._call = channel.stream_stream(
            f"/{SERVICE_NAME}/StreamAggregatedResources",
            request_serializer=discovery_pb2.DiscoveryRequest.SerializeToString,
            response_deserializer=discovery_pb2.DiscoveryResponse.FromString,
        )(None)
        self._node: base_pb2.Node | None = base_pb2.Node(id=name, user_agent_name="test", user_agent_version="1")

    async def ask(self, type_url: str, *names: str) -> None:
        await self._send(discovery_pb2.DiscoveryRequest(type_url=type_url, resource_names=names))

    async def answer(self, response: discovery_pb2.DiscoveryResponse, *names: str, nack: str = "") -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=response.type_url, resource_names=names, response_nonce=response.nonce
        )
        if nack:
            request.error_detail.CopyFrom(status_pb2.Status(message=nack))
        else:
            request.version_info = response.version_info
        await self._send(request)

    async def _send(self, request: discovery_pb2.DiscoveryRequest) -> None:
        if self._node is not None:
            request.node.CopyFrom(self._node)
            self._node = None
        await self._call.write(request)

    async def next(self) -> discovery_pb2.DiscoveryResponse:
        response = await asyncio.wait_for(self._call.read(), _DEADLINE_S)
        assert isinstance(response, discovery_pb2.DiscoveryResponse), "the stream ended"
        return response

    async def ended(self) -> bool:
        return not isinstance(await asyncio.wait_for(self._call.read(), _DEADLINE_S), discovery_pb2.DiscoveryResponse)

    def cancel(self) -> None:
        self._call.cancel()


@pytest.fixture
async def xds() -> AsyncIterator[tuple[XdsServer, grpc.aio.Channel]]:
    server, xds = MeshServer("127.0.0.1:0", [SERVICE_NAME]), XdsServer()
    xds.add_to(server.grpc)
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield xds, channel
    xds.close()
    await server.stop(1)


def assignments(version: int, **names: str) -> Snapshot:
    """A snapshot with endpoints only; a value stands for what an assignment holds."""
    packed = {
        name: pack(endpoint_pb2.ClusterLoadAssignment(cluster_name=f"{name}:{text}")) for name, text in names.items()
    }
    return Snapshot(str(version), {EDS: packed, CDS: {}, LDS: {}, RDS: {}})


def held(response: discovery_pb2.DiscoveryResponse) -> list[str]:
    found = []
    for resource in response.resources:
        assignment = endpoint_pb2.ClusterLoadAssignment()
        assert resource.Unpack(assignment)
        found.append(assignment.cluster_name)
    return found


Xds = tuple[XdsServer, grpc.aio.Channel]


async def until(condition: object) -> None:
    """Lets the server work until the condition holds."""
    assert callable(condition)
    async with asyncio.timeout(_DEADLINE_S):
        while not condition():  # noqa: ASYNC110  # the server is only looked at: it has no event to wait on
            await asyncio.sleep(0)


async def test_before_the_first_snapshot_clients_wait(xds: Xds) -> None:
    server, channel = xds
    client = Client(channel)
    await client.ask(EDS, "a")
    await until(server.clients)
    server.publish(assignments(1, a="1"))
    response = await client.next()
    assert (response.version_info, response.type_url, held(response)) == ("1", EDS, ["a:1"])


async def test_only_what_changed_is_sent_to_whom_it_concerns(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(1, a="1", b="1"))
    both, other = Client(channel, "both"), Client(channel, "other")
    await both.ask(EDS, "a", "b")
    await other.ask(EDS, "b")
    assert held(await both.next()) == ["a:1", "b:1"]
    assert held(await other.next()) == ["b:1"]
    server.publish(assignments(2, a="2", b="1"))
    assert held(await both.next()) == ["a:2"]
    server.publish(assignments(3, a="2", b="3"))
    assert held(await both.next()) == ["b:3"]
    response = await other.next()
    assert (held(response), response.version_info) == (["b:3"], "3")


async def test_acknowledgements_and_refusals_show_in_status(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(1, a="1"))
    client = Client(channel)
    await client.ask(EDS, "a")
    await client.answer(await client.next(), "a")
    await until(lambda: server.clients()[0].subscriptions[0].acked_version == "1")
    server.publish(assignments(2, a="2"))
    await client.answer(await client.next(), "a", nack="does not parse")
    await until(lambda: server.clients()[0].subscriptions[0].nack)
    (shown,) = server.clients()
    assert (shown.id, shown.user_agent) == ("client#1", "test 1")
    (sub,) = shown.subscriptions
    assert (sub.type, list(sub.names)) == ("eds", ["a"])
    assert (sub.sent_version, sub.acked_version, sub.nack) == ("2", "1", "does not parse")


async def test_what_a_client_gave_up_is_not_sent_any_more(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(1, a="1", b="1"))
    client = Client(channel)
    await client.ask(EDS, "a", "b")
    await client.answer(await client.next(), "b")
    await until(lambda: list(server.clients()[0].subscriptions[0].names) == ["b"])
    server.publish(assignments(2, a="2", b="1"))
    server.publish(assignments(3, a="2", b="3"))
    assert held(await client.next()) == ["b:3"]


async def test_a_client_that_comes_back_gets_everything_and_the_old_stream_is_forgotten(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(1, a="1"))
    for _ in range(2):
        client = Client(channel)
        await client.ask(EDS, "a")
        assert held(await client.next()) == ["a:1"]
        client.cancel()
        await until(lambda: not server.clients())


async def test_a_name_that_nobody_deployed_is_answered_at_once(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(1))
    client = Client(channel)
    await client.ask(LDS, "ghost")
    response = await client.next()
    assert [resource.SerializeToString() for resource in response.resources] == [absent_listener("ghost")]


async def test_of_many_snapshots_a_client_that_does_not_read_gets_the_newest(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(0, a="0"))
    client = Client(channel)
    await client.ask(EDS, "a")
    assert held(await client.next()) == ["a:0"]
    for version in range(1, 1001):  # published without once giving way to the stream
        server.publish(assignments(version, a=str(version)))
    assert held(await client.next()) == ["a:1000"]


async def test_an_unknown_type_is_left_unanswered(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(1, a="1"))
    client = Client(channel)
    await client.ask("type.googleapis.com/envoy.service.runtime.v3.Runtime", "x")
    await client.ask(EDS, "a")
    assert (await client.next()).type_url == EDS


async def test_closing_ends_every_stream(xds: Xds) -> None:
    server, channel = xds
    server.publish(assignments(1, a="1"))
    client = Client(channel)
    await client.ask(EDS, "a")
    await client.next()
    server.close()
    assert await client.ended()
    assert server.clients() == []
