"""The units, as systemd itself judges them, and an installation into an empty root by systemd's own tools."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from tools.systemd.host import DEFAULT_PORTS, ROLES, Host, RoleName
from tools.systemd.plan import plan_install, unit_text

MOST_EXPOSED = {"agent": 24, "coordinator": 13, "gateway": 13, "etcd": 13}
"""Limit on each unit's exposure in systemd's count from 0 to 100: docs/operations/systemd.md states it."""
DOCS = Path(__file__).parents[3] / "docs" / "operations" / "systemd.md"


def systemd(program: str) -> str:
    """Path of one of systemd's programs. Without it the test is skipped, or fails where every test must run."""
    found = shutil.which(program)
    if found is None:
        if os.environ.get("AIMESH_REQUIRE_ALL") == "1":
            pytest.fail(f"{program} is missing and AIMESH_REQUIRE_ALL=1 asks for every test: apt install systemd")
        pytest.skip(f"{program} is not installed")
    return found


@pytest.fixture(params=ROLES)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The unit of one role, whose program is one that exists."""
    role: RoleName = request.param
    path = tmp_path / f"aimesh-{role}.service"
    path.write_text(unit_text(role, sys.executable, drain_s=30))
    return path


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [systemd("systemd-analyze"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("role", ROLES)
def test_systemd_has_nothing_to_say_against_its_units(role: RoleName, tmp_path: Path) -> None:
    host = Host(role, "a", "10.0.0.1", DEFAULT_PORTS[role])
    units = []
    for file in plan_install(host, sys.executable, drain_s=30).files:
        if file.path.endswith((".service", ".timer")):
            units.append(tmp_path / Path(file.path).name)
            units[-1].write_text(file.text)
    done = analyze("verify", "--man=no", *units)
    assert (done.returncode, done.stderr) == (0, "")


def test_its_exposure_is_what_the_documentation_says(unit: Path) -> None:
    role = unit.stem.removeprefix("aimesh-")
    done = analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED[role]}", unit)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert done.returncode == 0, f"{found[0]} is more than {MOST_EXPOSED[role] / 10}"
    assert f"| `aimesh-{role}` | {found[1]} |" in DOCS.read_text()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes users, in a root of its own: needs root")
def test_an_installation_into_an_empty_root(tmp_path: Path) -> None:
    systemd("systemd-sysusers")
    systemd("systemd-tmpfiles")
    root = tmp_path / "root"
    (root / "opt").mkdir(parents=True)
    (root / "opt/aimesh").touch()
    arguments = ["--role", "agent", "--id", "gpu-1", "--address", "10.0.0.11", "--coordinators", "10.0.0.1:8503"]

    first = install(root, *arguments)
    assert {file["outcome"] for file in first["files"]} == {"new"}
    assert {file["outcome"] for file in install(root, *arguments)["files"]} == {"unchanged"}
    shown = install(root, *arguments, "--dry-run")["files"]
    assert all(Path(file["path"]).read_text() == file["text"] for file in shown), "the dry run says what is written"

    user = next(line for line in (root / "etc/passwd").read_text().splitlines() if line.startswith("aimesh-agent:"))
    uid = int(user.split(":")[2])
    assert user.endswith(":/var/lib/aimesh/agent:/usr/sbin/nologin")
    key = root / "etc/aimesh/tls/agent/key.pem"
    key.write_text("a key that root put there")
    install(root, "--role", "agent")
    assert (key.stat().st_uid, stat.S_IMODE(key.stat().st_mode)) == (uid, 0o600)
    assert stat.S_IMODE((root / "etc/aimesh/tls/agent").stat().st_mode) == 0o770
    config = (root / "etc/aimesh/agent.toml").stat()
    assert (config.st_uid, stat.S_IMODE(config.st_mode)) == (0, 0o640), "the agent reads it and cannot change it"


def install(root: Path, *arguments: str) -> dict[str, list[dict[str, str]]]:
    command = [sys.executable, "-m", "tools.cli.main", "install", *arguments]
    command += ["--root", str(root), "--program", "/opt/aimesh", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, list[dict[str, str]]] = json.loads(done.stdout)
    return answer
