"""Every rpc, found by reflection, called by everyone who may not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from aimesh.identity.v1 import identity_pb2, identity_pb2_grpc
from meshkit import scopes
from meshkit.scopes import expand, requirement
from tests.mesh.coordinator.conftest import coordinator
from tests.mesh.identity.conftest import Secure, refused
from tests.processes import EtcdServer

NOT_SERVED_HERE = (
    "/inference.GRPCInferenceService/",  # described for those who come through a gateway; the nodes serve it
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
)
OPEN = {
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/aimesh.identity.v1.IdentityService/WhoAmI",
}
"""What anyone with a certificate may call: nothing is added here without thought."""
REFUSALS = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)


async def methods(channel: grpc.aio.Channel) -> dict[str, Any]:
    """Every method that reflection tells of, by full path, with its descriptor."""
    stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)

    async def ask(**query: str) -> Any:
        async def requests() -> AsyncIterator[reflection_pb2.ServerReflectionRequest]:
            yield reflection_pb2.ServerReflectionRequest(**query)

        return await anext(aiter(stub.ServerReflectionInfo(requests(), timeout=10)))

    listed = [service.name for service in (await ask(list_services="")).list_services_response.service]
    found = {}
    for service in listed:
        answer = await ask(file_containing_symbol=service)
        files = [
            descriptor_pb2.FileDescriptorProto.FromString(raw)
            for raw in answer.file_descriptor_response.file_descriptor_proto
        ]
        assert files, service
        for method in descriptor_pool.Default().FindServiceByName(service).methods:
            found[f"/{service}/{method.name}"] = method
    return {path: method for path, method in found.items() if not path.startswith(NOT_SERVED_HERE)}


async def _nothing() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield


async def call(channel: grpc.aio.Channel, path: str, method: Any) -> None:
    """Calls any method with an empty request; one that streams its requests with none.

    (grpc.aio says INTERNAL itself when a stream ends while a message is being written.)
    """
    request = message_factory.GetMessageClass(method.input_type)()
    many_in, many_out = method.client_streaming, method.server_streaming
    made: Any
    kind = f"{'stream' if many_in else 'unary'}_{'stream' if many_out else 'unary'}"
    multi = getattr(channel, kind)(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
    )
    made = multi(_nothing() if many_in else request, timeout=10)
    if many_out:
        async for _ in made:
            return
    else:
        await made


@pytest.mark.timeout(180)
async def test_nobody_calls_what_he_may_not(secure: Secure) -> None:
    """For every rpc: a certificate without rights, and a key with every scope but those that are asked for."""
    issue = secure.authority.issue
    async with secure.caller() as channel:
        found = await methods(channel)
    assert len(found) > 30
    public = {path for path in found if scopes.PUBLIC in requirement(path).scopes}
    assert public == OPEN
    keys = {scope: await secure.key(scopes.word(scope), scope) for scope in scopes.KEY_SCOPES}
    for path, method in found.items():
        needs = requirement(path)
        assert needs.scopes or needs.roles, f"{path} declares no scope: state one in its proto"
        if path in public:
            continue
        async with secure.caller(issue("etcd", "e1")) as channel:
            assert await refused(call(channel, path, method)) in REFUSALS, path
        if "gateway" not in needs.roles:  # as a gateway passes on a call without a key
            async with secure.caller(issue("gateway", "g1")) as channel:
                assert await refused(call(channel, path, method)) == grpc.StatusCode.UNAUTHENTICATED, path
        for scope, key in keys.items():
            async with secure.caller(issue("gateway", "g1"), key) as channel:
                if not needs.scopes & expand([scope]):
                    assert await refused(call(channel, path, method)) == grpc.StatusCode.PERMISSION_DENIED, (
                        path,
                        scope,
                    )


@pytest.mark.parametrize(
    ("role", "may"),
    [
        ("node", {"node"}),
        ("coordinator", {"coordinator", "read"}),
        ("gateway", set()),
        ("etcd", set()),
        ("client", {"infer"}),
        ("admin", {"admin", "read", "infer", "deploy"}),
    ],
)
async def test_a_certificate_gives_what_its_role_has(secure: Secure, role: Any, may: set[str]) -> None:
    answer = await secure.call("WhoAmI", identity_pb2.WhoAmIRequest(), secure.authority.issue(role, "x1"))
    assert answer.actor == f"{role}:x1"
    assert set(scopes.words(answer.scopes)) == may


async def test_a_method_that_declares_nothing_is_refused_to_everyone() -> None:
    assert requirement("/aimesh.identity.v1.IdentityService/NoSuchMethod") == scopes.Requirement()
    assert requirement("/inference.GRPCInferenceService/ModelInfer") == scopes.Requirement()


async def test_without_tls_anyone_may_but_a_key_that_is_shown_is_checked(secure: Secure, etcd: EtcdServer) -> None:
    """The easy default on loopback."""
    reader = await secure.key("reader", scopes.READ)
    async with coordinator(etcd, secure.settings.data_dir, "c2", auth=secure.settings.auth) as plain:
        stub: Any = identity_pb2_grpc.IdentityServiceStub(plain.channel)
        who = await stub.WhoAmI(identity_pb2.WhoAmIRequest(), timeout=10)
        assert (who.actor, len(who.scopes)) == ("anyone", 7)
        shown = {"metadata": (("authorization", f"Bearer {reader}"),), "timeout": 10}
        who = await stub.WhoAmI(identity_pb2.WhoAmIRequest(), **shown)
        assert (who.actor, scopes.words(who.scopes)) == ("key:reader", ["read"])
        wrong = {"metadata": (("authorization", f"Bearer {reader[:-4]}AAAA"),), "timeout": 10}
        assert await refused(stub.WhoAmI(identity_pb2.WhoAmIRequest(), **wrong)) == grpc.StatusCode.UNAUTHENTICATED
        assert (
            await refused(stub.ListKeys(identity_pb2.ListKeysRequest(), **shown)) == grpc.StatusCode.PERMISSION_DENIED
        )
