from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.errors import InvalidInputError
from meshkit.settings import load_settings
from node_agent.settings import AgentSettings
from tools.local.children import children, stop_order
from tools.local.layout import BLOCK, ETCD_COUNTS, MOST_COORDINATORS, MOST_NODES, Layout, Share, divide, to_toml

SHARE = Share(memory_bytes=4 << 30, cpu_cores=1.0)


@given(
    base=st.integers(1024, 65435),
    nodes=st.integers(1, MOST_NODES),
    coordinators=st.integers(1, MOST_COORDINATORS),
    etcd=st.sampled_from(ETCD_COUNTS),
    tls=st.booleans(),
)
def test_ports_are_all_different_and_within_the_block(
    base: int, nodes: int, coordinators: int, etcd: int, *, tls: bool
) -> None:
    layout = Layout(Path("/m"), base, nodes, coordinators, etcd, tls)
    ports = layout.ports()
    assert len(ports) == 3 + 3 * nodes + coordinators + 2 * etcd + tls
    assert all(base <= port < base + BLOCK for port in ports)


def test_a_mesh_that_grows_keeps_the_places_of_what_it_had() -> None:
    small, large = Layout(Path("/m"), 8500, 1), Layout(Path("/m"), 8500, 1, 3, 3)
    assert (small.coordinator_names, small.etcd_names) == (("coordinator",), ("etcd",))
    assert small.ports().items() <= large.ports().items()
    assert large.coordinators[: small.coordinator_count] == small.coordinators == ("127.0.0.1:8503",)
    assert large.coordinator_names[: small.coordinator_count] == small.coordinator_names


def test_two_layouts_side_by_side_share_nothing() -> None:
    one, two = Layout(Path("/a"), 8500, 3), Layout(Path("/b"), 8500 + BLOCK, 3)
    assert not set(one.ports()) & set(two.ports())


@pytest.mark.parametrize(("base", "nodes"), [(8500, 0), (8500, MOST_NODES + 1), (80, 1), (65500, 1)])
def test_what_does_not_fit_is_refused_with_the_value(base: int, nodes: int) -> None:
    with pytest.raises(InvalidInputError, match=str(base if 0 < nodes <= MOST_NODES else nodes)):
        Layout(Path("/m"), base, nodes)


@pytest.mark.parametrize(
    ("coordinators", "etcd", "named"), [(0, 1, "--coordinators 0"), (6, 1, "6"), (1, 2, "--etcd 2")]
)
def test_numbers_that_no_mesh_has_are_refused_with_the_value(coordinators: int, etcd: int, named: str) -> None:
    with pytest.raises(InvalidInputError, match=named):
        Layout(Path("/m"), 8500, 1, coordinators, etcd)


@given(memory=st.integers(2 << 30, 1 << 42), cores=st.floats(1, 512), nodes=st.integers(1, MOST_NODES))
def test_the_machine_is_divided_with_headroom(memory: int, cores: float, nodes: int) -> None:
    share = divide(memory, cores, nodes)
    if share.memory_bytes > 256 << 20:
        assert share.memory_bytes * nodes <= memory - max(memory // 5, 1 << 30)
    assert share.cpu_cores * nodes == pytest.approx(cores, abs=0.01 * nodes)


def test_an_agents_file_gives_its_settings() -> None:
    layout = Layout(Path("/state dir/m"), 8500, 2)
    child = next(child for child in children(layout, SHARE, "/bin/etcd") if child.name == "node-2")
    assert child.config is not None
    table = tomllib.loads(child.config[1])["agent"]
    assert table["node_id"] == "node-2"
    assert table["coordinators"] == list(layout.coordinators)
    assert table["triton"]["grpc_port"] == layout.node_ports(1).grpc
    assert table["memory_bytes"] == SHARE.memory_bytes


def test_everyone_knows_all_coordinators_and_members_and_begins_with_another() -> None:
    layout = Layout(Path("/m"), 8500, 4, coordinator_count=3, etcd_count=3)
    tables = {
        child.name: tomllib.loads(child.config[1])
        for child in children(layout, SHARE, "/bin/etcd")
        if child.config is not None
    }
    lists = [tables[name]["agent"]["coordinators"] for name in ("node-1", "node-2", "node-3", "node-4")]
    assert [each[0] for each in lists] == [*layout.coordinators, layout.coordinators[0]]
    endpoints = [tables[name]["coordinator"]["etcd"]["endpoints"] for name in layout.coordinator_names]
    assert [each[0] for each in endpoints] == list(layout.etcd)
    assert all(sorted(each) == sorted(layout.coordinators) for each in lists)
    assert all(sorted(each) == sorted(layout.etcd) for each in endpoints)
    assert tables["gateway"]["gateway"]["coordinators"] == list(layout.coordinators)
    keys = {tables[name]["coordinator"]["auth"]["key_file"] for name in layout.coordinator_names}
    assert len(keys) == 1


def test_etcds_members_know_each_other() -> None:
    layout = Layout(Path("/m"), 8500, 1, etcd_count=3)
    plan = [child for child in children(layout, SHARE, "/bin/etcd") if child.name in layout.etcd_names]
    assert len(plan) == 3
    expected = [f"{name}=http://{peer}" for name, peer in zip(layout.etcd_names, layout.etcd_peers, strict=True)]
    for child in plan:
        assert f"--initial-cluster={','.join(expected)}" in child.argv
        assert f"--name={child.name}" in child.argv
        assert f"--data-dir={layout.data_dir(child.name)}" in child.argv


def test_every_role_accepts_its_file(tmp_path: Path) -> None:
    from coordinator.settings import CoordinatorSettings
    from tools.gateway import GatewaySettings

    kinds = {"coordinator": CoordinatorSettings, "node-1": AgentSettings, "gateway": GatewaySettings}
    tables = {"coordinator": "coordinator", "node-1": "agent", "gateway": "gateway"}
    for child in children(Layout(tmp_path, 8500, 1), SHARE, "/bin/etcd"):
        if child.config is not None:
            path = tmp_path / child.config[0].name
            path.write_text(child.config[1])
            load_settings(kinds[child.name], tables[child.name], path, environ={})


def test_etcd_listens_on_loopback_and_keeps_its_writes_on_disk() -> None:
    etcd = children(Layout(Path("/m"), 8500, 1), SHARE, "/bin/etcd")[0]
    assert etcd.argv[0] == "/bin/etcd"
    assert "--listen-client-urls=http://127.0.0.1:8501" in etcd.argv
    assert not any("fsync" in argument for argument in etcd.argv)


def test_stopping_goes_from_the_edge_inwards() -> None:
    names = ["etcd", "coordinator", "node-1", "node-2", "gateway"]
    assert stop_order(names) == [["gateway"], ["node-1", "node-2"], ["coordinator"], ["etcd"]]
    assert stop_order(["etcd", "node-1"]) == [["node-1"], ["etcd"]]
    several = ["etcd", "etcd-2", "coordinator", "coordinator-2", "gateway"]
    assert stop_order(several) == [["gateway"], ["coordinator", "coordinator-2"], ["etcd"], ["etcd-2"]]


@given(st.text(), st.integers(-(2**63), 2**63 - 1), st.booleans(), st.lists(st.text()))
def test_toml_reads_back_as_written(text: str, number: int, flag: bool, items: list[str]) -> None:
    table = {"text": text, "number": number, "flag": flag, "items": items, "inner": {"text": text}}
    if any(0xD800 <= ord(letter) < 0xE000 for letter in text + "".join(items)):
        return  # a lone surrogate is no text that a file can hold
    assert tomllib.loads(to_toml({"table": table})) == {"table": table}
