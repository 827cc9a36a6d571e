"""etcd as `aimesh install` configures it: three members form a cluster, which docs/operations backs up and restores."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.processes import eventually, process
from tools.local.etcd import etcd_binary
from tools.systemd.configs import config_text, data_dir
from tools.systemd.host import ETCD_CLIENT_PORT, Host, check

NAMES = ("e1", "e2", "e3")


class Members:
    """Three members on loopback addresses of their own, as on three hosts."""

    def __init__(self, folder: Path) -> None:
        net = f"127.{64 + os.getpid() % 64}.{os.getpid() // 64 % 256}"
        self.folder = folder
        self.addresses = {name: f"{net}.{number}" for number, name in enumerate(NAMES, 1)}

    def config(self, name: str) -> Path:
        cluster = tuple(self.addresses.items())
        host = Host("etcd", name, self.addresses[name], ETCD_CLIENT_PORT, cluster=cluster, insecure=True)
        path = self.folder / f"{name}.yaml"
        path.write_text(config_text(check(host)).replace(data_dir("etcd"), str(self.data(name))))
        return path

    def data(self, name: str) -> Path:
        return self.folder / name

    def start(self, stack: ExitStack, *names: str) -> None:
        for name in names:
            argv = [etcd_binary(), "--config-file", str(self.config(name))]
            stack.enter_context(process(argv, self.folder / f"{name}.log"))

    def ctl(self, *arguments: str, program: str = "etcdctl", member: str = "e1") -> subprocess.CompletedProcess[str]:
        tool = Path(etcd_binary()).with_name(program)
        endpoint = f"http://{self.addresses[member]}:{ETCD_CLIENT_PORT}"
        environ = {**os.environ, "ETCDCTL_API": "3", "ETCDCTL_ENDPOINTS": endpoint}
        return subprocess.run(
            [str(tool), *arguments], env=environ, capture_output=True, text=True, timeout=60, check=False
        )

    def done(self, *arguments: str, program: str = "etcdctl", member: str = "e1") -> str:
        ran = self.ctl(*arguments, program=program, member=member)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    async def healthy(self, *names: str) -> None:
        for name in names or NAMES:
            await eventually(
                lambda name=name: self.ctl("endpoint", "health", member=name).returncode == 0,  # type: ignore[misc]
                what=f"{name}'s health",
            )

    def urls(self) -> str:
        return ",".join(f"{name}=http://{address}:2380" for name, address in self.addresses.items())


@pytest.fixture
def members(tmp_path: Path) -> Members:
    if not Path(etcd_binary()).with_name("etcdutl").exists():
        pytest.skip("this etcd comes without etcdutl")
    return Members(tmp_path)


async def test_a_lost_cluster_is_restored_and_a_dead_member_replaced(members: Members) -> None:
    with ExitStack() as running:
        members.start(running, *NAMES)
        await members.healthy()
        members.done("put", "/aimesh/v1/deployments/a", "before")
        members.done("snapshot", "save", str(members.folder / "backup.db"), member="e2")
        members.done("put", "/aimesh/v1/deployments/b", "after")
    for name in NAMES:
        restore(members, name)
    with ExitStack() as running, ExitStack() as third:
        members.start(running, "e1", "e2")
        members.start(third, "e3")
        await members.healthy()
        assert kept(members) == ["/aimesh/v1/deployments/a", "before"]
        third.close()
        await replace_third(members, running)
        assert kept(members) == ["/aimesh/v1/deployments/a", "before"]


def restore(members: Members, name: str) -> None:
    members.data(name).rename(members.folder / f"{name}.lost")
    members.done(
        *("snapshot", "restore", str(members.folder / "backup.db"), "--data-dir", str(members.data(name))),
        *("--name", name, "--initial-cluster", members.urls(), "--initial-cluster-token", "aimesh-2"),
        *("--initial-advertise-peer-urls", f"http://{members.addresses[name]}:2380"),
        program="etcdutl",
    )


async def replace_third(members: Members, running: ExitStack) -> None:
    """On a new host with a new address."""
    listed = [line.split(", ") for line in members.done("member", "list").splitlines()]
    (dead,) = [member[0] for member in listed if member[2] == "e3"]
    members.done("member", "remove", dead)
    members.addresses["e3"] = members.addresses["e3"].rpartition(".")[0] + ".4"
    add = ("member", "add", "e3", f"--peer-urls=http://{members.addresses['e3']}:2380")
    # Refused until the others have been connected for five seconds.
    await eventually(lambda: members.ctl(*add).returncode == 0, what="the new member's acceptance")
    members.data("e3").rename(members.folder / "e3.dead")
    config = members.config("e3")
    config.write_text(config.read_text().replace('-state: "new"', '-state: "existing"'))
    running.enter_context(process([etcd_binary(), "--config-file", str(config)], members.folder / "e3.log"))
    await members.healthy()


def kept(members: Members) -> list[str]:
    """What the third member says is there."""
    return members.done("get", "--prefix", "/aimesh/v1/", member="e3").split()
