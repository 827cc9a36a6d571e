"""`aimesh simulate` at a small size: its figures make sense, heartbeats write nothing, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.mesh.tools.meshes import Aimesh, until
from tools.simulate.plan import Plan
from tools.simulate.rollouts import roll_all

SIZE = ["--nodes", "10", "--models", "5", "--clients", "10", "--coordinators", "2"]


def simulate(place: Path, *options: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tools.cli.main", "simulate", *SIZE, *options],
        env={**os.environ, "TMPDIR": str(place)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def hold_nothing_left(place: Path) -> None:
    until(lambda: not Aimesh(place).processes(), lambda: "processes are left")
    assert list(place.iterdir()) == []


def test_a_small_simulation_measures_what_happens_and_idle_writes_nothing(tmp_path: Path) -> None:
    with simulate(tmp_path, "--duration", "4s", "--idle", "2s", "--json") as process:
        out, err = process.communicate(timeout=150)
    assert process.returncode == 0, out + err
    report = json.loads(out)
    assert report["problems"] == []
    assert report["parts"]["idle"]["etcd_revisions"] == 0
    assert 10 <= report["idle_heartbeats"] <= 100  # 10 nodes, one a second, for 2 s or somewhat more
    assert report["join"]["count"] >= 10
    assert report["parts"]["join"]["etcd_writes"] >= 2 * 10  # each node is written under its lease and for good
    everyone, changes = report["propagation"]["everyone"], report["propagation"]["all"]
    assert everyone["count"] == 20
    assert changes["count"] >= report["changes"] > 0
    assert 0 < changes["p50"] <= changes["p99"] <= changes["most"] < 30
    assert {"coordinator-1", "coordinator-2", "etcd-1", "simulator"} == report["resident_bytes"].keys()
    hold_nothing_left(tmp_path)


def test_ctrl_c_ends_everything(tmp_path: Path) -> None:
    with simulate(tmp_path, "--etcd", "3", "--duration", "60s") as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "have joined" in line:
                process.send_signal(signal.SIGINT)
                break
        process.communicate(timeout=60)
    assert process.returncode != 0
    hold_nothing_left(tmp_path)


def test_twenty_models_on_ten_nodes_go_to_their_next_versions_within_a_minute() -> None:
    rolled = roll_all(Plan(nodes=10, models=20, clients=20, coordinators=1))
    assert len(rolled.each_s) == 20
    assert rolled.each_s[-1] <= rolled.seconds < 60
