"""What is shown to the mesh, and by whom it can be seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshkit.credentials import ClientCredentials
from meshkit.errors import InvalidInputError
from meshkit.tls import TlsSettings
from tools.gateway import GatewaySettings, bootstrap
from tools.gateway_security import key_filters


@pytest.mark.parametrize("target", ["10.0.0.1:8503", "mesh.example:8500", "[2001:db8::1]:8500", "localhost.example:1"])
async def test_a_key_is_not_sent_in_plain_text(target: str) -> None:
    with pytest.raises(InvalidInputError, match="plain text") as refused:
        ClientCredentials(api_key="k").coordinator_channel(target)
    assert refused.value.reason == "TLS_REQUIRED"
    await ClientCredentials().coordinator_channel(target).close(None)


@pytest.mark.parametrize("target", ["127.0.0.1:8503", "localhost:8503", "[::1]:8503"])
async def test_on_one_machine_it_is(target: str) -> None:
    await ClientCredentials(api_key="k").coordinator_channel(target).close(None)


def test_the_gateway_takes_keys_from_one_place_and_gives_them_to_no_node() -> None:
    """Envoy looks into the query too unless told where keys are; what is in the query is logged."""
    (provider,) = key_filters(Path("/jwks.json"))[0]["typed_config"]["providers"].values()
    assert provider["from_headers"] == [{"name": "authorization", "value_prefix": "Bearer "}]
    assert provider["forward"] is False


def test_the_gateway_believes_no_caller_where_it_comes_from(tmp_path: Path) -> None:
    tls = TlsSettings(ca=tmp_path / "ca", cert=tmp_path / "cert", key=tmp_path / "key")
    settings = GatewaySettings(data_dir=tmp_path, coordinators=("127.0.0.1:1",), tls=tls, api_keys=tmp_path / "jwks")
    (listener,) = bootstrap(settings)["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert manager["use_remote_address"] is True
