from __future__ import annotations

from pathlib import Path

import pytest

from meshkit.errors import InvalidInputError
from meshkit.settings import load_settings
from node_agent.settings import RUNTIMES_DIR, AgentSettings

_REQUIRED = '[agent]\nnode_id = "gpu-7"\ndata_dir = "/var/lib/aimesh"\n'


def _load(tmp_path: Path, text: str, environ: dict[str, str] | None = None) -> AgentSettings:
    path = tmp_path / "agent.toml"
    path.write_text(text)
    return load_settings(AgentSettings, "agent", path, environ or {})


def test_defaults(tmp_path: Path) -> None:
    settings = _load(tmp_path, _REQUIRED)
    assert settings.node_id == "gpu-7"
    assert settings.triton.mode == "managed"
    assert settings.disk_bytes == 50 * 1024**3
    assert settings.runtimes_dir == RUNTIMES_DIR


def test_environment_reaches_nested_keys(tmp_path: Path) -> None:
    environ = {"AIMESH_AGENT_TRITON_GRPC_PORT": "9001", "AIMESH_AGENT_COORDINATORS": "a:1,b:2"}
    settings = _load(tmp_path, _REQUIRED, environ)
    assert settings.triton.grpc_port == 9001
    assert settings.coordinators == ("a:1", "b:2")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "agent.node_id is required"),
        ('node_id = "Gpu_7"', "agent.node_id = 'Gpu_7'"),
        ('node_id = "a"\ncoordinators = ["host"]', "'host'"),
        ('node_id = "a"\ncoordinators = []', "agent.coordinators"),
        ('node_id = "a"\naddress = "gpu-7.example"', "must be an IP address"),
        ('node_id = "a"\naddress = "10.0.0.1:8001"', "agent.address = '10.0.0.1:8001'"),
        ('node_id = "a"\ndisk_bytes = 0', "agent.disk_bytes = 0"),
        ('node_id = "a"\ncordinators = ["a:1"]', "coordinators"),
        ('node_id = "a"\n[agent.triton]\ngrpc_port = 70000', "agent.triton.grpc_port = 70000"),
        ('node_id = "a"\n[agent.triton]\nhttp_port = 8001', "must differ"),
        ('node_id = "a"\n[agent.triton]\nmode = "external"', "external_address"),
        ('node_id = "a"\n[agent.triton]\nmode = "remote"', "'managed' or 'external'"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        _load(tmp_path, f'[agent]\ndata_dir = "/d"\n{text}\n')
    assert said in str(caught.value)


@pytest.mark.parametrize("address", ["10.0.0.1", "fd00::7"])
def test_an_address_is_an_ip(tmp_path: Path, address: str) -> None:
    assert _load(tmp_path, f'{_REQUIRED}address = "{address}"\n').address == address


@pytest.mark.parametrize("key", ['address = "10.0.0.7"', '[agent.triton]\nlisten = "0.0.0.0"'])
def test_other_machines_reach_triton_over_tls_only(tmp_path: Path, key: str) -> None:
    _load(tmp_path, _REQUIRED).check_bindings()
    with pytest.raises(InvalidInputError, match="without TLS"):
        _load(tmp_path, _REQUIRED + key).check_bindings()
    _load(tmp_path, _REQUIRED + "insecure = true\n" + key).check_bindings()
    tls = '\n[agent.tls]\nca = "/ca"\ncert = "/cert"\nkey = "/key"\n'
    _load(tmp_path, _REQUIRED + key + tls).check_bindings()
