from __future__ import annotations

import json
import os
from io import StringIO
from pathlib import Path

from rich.console import Console

from aimesh.cluster.v1 import cluster_pb2
from meshkit.process import ProcessId
from tests.unit.tools.statuses import node, status
from tools.cli.status_view import routes_table, status_json, status_tables
from tools.cli.target import Mesh
from tools.local.layout import Layout
from tools.local.record import MeshRecord

ME = ProcessId.of(os.getpid())
LAYOUT = Layout(Path("/m"), 8500, 1)
LOCAL = Mesh(LAYOUT.coordinators, LAYOUT.gateway, Path("/m"), MeshRecord(LAYOUT, ME, {"etcd": ME, "gateway": ME}))
REMOTE = Mesh(("far:1",), "", None, None)


def rendered(what: object) -> str:
    console = Console(file=StringIO(), width=200)
    console.print(what)
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def test_json_has_the_documented_keys() -> None:
    found = json.loads(json.dumps(status_json(LOCAL, status(node("node-1")))))
    assert {"cluster", "nodes", "deployments"} <= set(found)
    cluster = found["cluster"]
    assert cluster["state_dir"] == "/m"
    assert cluster["gateway"] == "127.0.0.1:8504"
    assert cluster["coordinators"] == [{"id": "coordinator-1", "address": "127.0.0.1:8503", "leader": True, "pid": 55}]
    assert cluster["etcd"] == [{"address": "127.0.0.1:8501", "pid": ME.pid}]
    [entry] = found["nodes"]
    assert {key: entry[key] for key in ("id", "state", "epoch", "address", "triton", "pid", "triton_pid")} == {
        "id": "node-1",
        "state": "READY",
        "epoch": 7,
        "address": "127.0.0.1",
        "triton": "127.0.0.1:8510",
        "pid": 66,
        "triton_pid": 77,
    }
    assert {"name": "m", "version": "1.0.0", "state": "READY"}.items() <= entry["models"][0].items()
    assert {"name": "m", "version": "1.0.0", "wanted": 1, "ready": 1}.items() <= found["deployments"][0].items()


def test_json_numbers_are_numbers() -> None:
    found = status_json(LOCAL, status(node("node-1")))
    assert found["cluster"]["revision"] == 2**53
    [entry] = found["nodes"]
    assert entry["capacity"]["memory_bytes"] == 2**60
    assert entry["capacity"]["gpus"][0] == {"index": 0, "uuid": "GPU-1", "name": "H200", "memory_bytes": 141 << 30}
    assert entry["load"]["cpu_utilization"] == 0.25


def test_json_of_a_mesh_elsewhere_has_no_local_pids() -> None:
    found = status_json(REMOTE, status())
    assert found["cluster"]["state_dir"] is None
    assert found["cluster"]["etcd"] == [{"address": "127.0.0.1:8501", "pid": None}]


def test_tables_show_what_runs_where() -> None:
    text = rendered(status_tables(LOCAL, status(node("node-1"))))
    for expected in ("node-1", "READY", "m:1.0.0 READY", "25% of 1.5", "H200", "1 of 1", "leads", f"(pid {ME.pid})"):
        assert expected in text
    assert "found no place" not in text


def test_partial_placement_and_frozen_are_shown() -> None:
    text = rendered(status_tables(LOCAL, status(node("node-1"), wanted=2, limit="memory", frozen="etcd is lost")))
    for expected in ("1 of 2", "found no place", "node-9", "memory: 1 of 2", "FROZEN", "etcd is lost"):
        assert expected in text


def test_a_failed_model_shows_why() -> None:
    failed = node("node-1", model_state="FAILED", message="out of memory")
    assert "FAILED: out of memory" in rendered(status_tables(LOCAL, status(failed, ready=0)))


def test_an_empty_mesh_says_how_to_go_on() -> None:
    assert "aimesh deploy" in rendered(status_tables(REMOTE, cluster_pb2.Status()))


def test_routes_say_how_to_reach_a_model() -> None:
    text = rendered(routes_table(LOCAL, status(node("node-1"))))
    assert "xds:///m" in text
    assert "127.0.0.1:8504" in text
    assert "127.0.0.1:8510" in text


def test_a_coordinator_without_a_lease_is_missed_but_a_host_name_is_not() -> None:
    found = status(node("node-1"))
    asked = Mesh(("127.0.0.1:8503", "127.0.0.1:8590", "mesh.example:8503"), "", None, None)
    assert status_json(asked, found)["cluster"]["coordinators_missing"] == ["127.0.0.1:8590"]
    assert "127.0.0.1:8590  MISSING" in rendered(status_tables(asked, found))
    assert "MISSING" not in rendered(status_tables(LOCAL, found))
