"""Signatures and measured memory through a real coordinator: recorded, refused, handed to agents, kept, removed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.rollout.v1 import rollout_pb2, rollout_pb2_grpc
from aimesh.routing.v1 import routing_pb2
from coordinator import keys
from coordinator.etcd import Etcd
from coordinator.settings import EtcdSettings
from meshkit.errors import InvalidInputError, PreconditionError, SupersededError
from meshkit.signing import raw_public, sign, verify
from tests.mesh.coordinator.conftest import agent, coordinator, model
from tests.mesh.coordinator.test_api import CONTENT, DIGEST, Api, _said, target
from tests.processes import EtcdServer, eventually

M = ("m", "1.0.0")


async def test_signed_only(etcd: EtcdServer, tmp_path: Path) -> None:
    key, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    trust = registry_pb2.Trust(keys=[registry_pb2.TrustedKey(name="release", public_key=raw_public(key))])
    async with coordinator(etcd, tmp_path) as c1:
        api = Api(c1)
        await api.upload(CONTENT)
        file = model().files[0]
        file.digest, file.size = DIGEST, len(CONTENT)
        old, new, unsigned = model(), model(version="1.1.0"), model(version="1.0.1")
        for each in (old, new, unsigned):
            each.files[0].CopyFrom(file)
        recorded = await api.push(old)
        await api.push(unsigned)
        n1 = agent(c1.settings.address)
        await n1.join()
        await api.deploy("m", target())
        assert await _trust(api, trust) == trust
        trust.signed_only = True
        await _trust(api, trust)
        assert (await api.registry.GetTrust(registry_pb2.GetTrustRequest(), timeout=5)).trust == trust
        stale = registry_pb2.SetTrustRequest(trust=trust, replaces=registry_pb2.Trust())
        with pytest.raises(SupersededError, match="trusted keys changed in the meantime"):
            await _said(api.registry.SetTrust(stale, timeout=5))
        stale.replaces.CopyFrom(trust)
        await _said(api.registry.SetTrust(stale, timeout=5))
        with pytest.raises(InvalidInputError, match="without a trusted key"):
            await _trust(api, registry_pb2.Trust(signed_only=True))

        with pytest.raises(PreconditionError) as caught:
            await api.push(new)
        assert caught.value.reason == "UNSIGNED"
        new.signatures.append(sign(new, other))
        with pytest.raises(PreconditionError) as caught:
            await api.push(new)
        assert caught.value.reason == "KEY_NOT_TRUSTED"
        new.signatures[0].CopyFrom(sign(new, key))
        assert verify(await api.push(new), trust).signer == "release"

        with pytest.raises(PreconditionError, match=r"m:1.0.1: nobody signed it"):
            await api.deploy("m", target(unsigned.version))
        spec = rollout_pb2.RolloutSpec(name="m", version=unsigned.version, rolling=rollout_pb2.Rolling())
        rollouts: Any = rollout_pb2_grpc.RolloutServiceStub(c1.channel)
        with pytest.raises(PreconditionError, match=r"m:1.0.1: nobody signed it"):
            await _said(rollouts.StartRollout(rollout_pb2.StartRolloutRequest(spec=spec), timeout=5))
        await api.deploy("m", target(replicas=2))  # what serves already may still be changed
        await eventually(lambda: n1.models() == {"m:1.0.0"}, what="placed")
        await eventually(lambda: n1.assignments[-1].trust == trust, what="the trust is with the agent")
        with pytest.raises(InvalidInputError, match="of key release is not of"):
            await _sign(api, sign(new, key))
        await _sign(api, sign(recorded, key))
        await eventually(lambda: _signed(n1.assignments[-1]), what="the signature is with the agent")
        trust.keys.add(name="other", public_key=raw_public(other))
        await _trust(api, trust)
        await eventually(lambda: n1.assignments[-1].trust == trust, what="the new trust is with the agent")

        size = 300 * 1024**2
        n1.obedient = False
        status = membership_pb2.ModelStatus(
            name="m", version="1.0.0", state=membership_pb2.MODEL_STATE_READY, measured_memory_bytes=size
        )
        n1.report(status)
        store = Etcd(EtcdSettings(endpoints=(etcd.address,)))
        await store.connect()
        await eventually(lambda: _kept(store, size), what="kept")
        await _said(api.routing.DeleteDeployment(routing_pb2.DeleteDeploymentRequest(name="m"), timeout=5))
        await eventually(lambda: n1.models() == set(), what="undeployed")
        await _said(api.registry.DeleteVersion(registry_pb2.DeleteVersionRequest(name="m", version="1.0.0"), timeout=5))
        n1.report()
        await eventually(lambda: _kept(store, 0), what="forgotten")
        await store.close()
        await n1.vanish()


async def _trust(api: Api, trust: registry_pb2.Trust) -> registry_pb2.Trust:
    return (await _said(api.registry.SetTrust(registry_pb2.SetTrustRequest(trust=trust), timeout=5))).trust  # type: ignore[no-any-return]


async def _sign(api: Api, signature: registry_pb2.VersionSignature) -> Any:
    request = registry_pb2.SignVersionRequest(name="m", version="1.0.0", signature=signature)
    return await _said(api.registry.SignVersion(request, timeout=5))


def _signed(assignments: membership_pb2.Assignments) -> bool:
    return len(assignments.models[0].signatures) == 1


async def _kept(store: Etcd, size: int) -> bool:
    _, (held,) = await store.get(keys.measured(*M))
    return keys.parse(held.value or b"{}", registry_pb2.Measured()).memory_bytes == size
