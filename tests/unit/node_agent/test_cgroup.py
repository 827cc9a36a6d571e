from __future__ import annotations

from pathlib import Path

from node_agent.capacity import HostFacts, capacity_of
from node_agent.cgroup import CgroupLimits, parse_membership, parse_stat, read_limits, read_memory_used, read_oom_kills
from node_agent.gpus import GpuInventory
from node_agent.settings import AgentSettings


def _write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_version_2_takes_the_least_on_the_way_up(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "self": "0::/a/b\n",
            "fs/a/cpu.max": "150000 100000\n",
            "fs/a/b/cpu.max": "max 100000\n",
            "fs/a/memory.max": "max\n",
            "fs/a/b/memory.max": "1073741824\n",
        },
    )
    assert read_limits(tmp_path / "fs", tmp_path / "self") == CgroupLimits(1.5, 1 << 30)


def test_version_1(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {
            "self": "4:memory:/job\n2:cpu,cpuacct:/\n",
            "fs/cpu/cpu.cfs_quota_us": "200000\n",
            "fs/cpu/cpu.cfs_period_us": "100000\n",
            "fs/memory/memory.limit_in_bytes": "9223372036854771712\n",
            "fs/memory/job/memory.limit_in_bytes": "2048\n",
            "fs/memory/job/memory.usage_in_bytes": "1500\n",
            "fs/memory/job/memory.stat": "total_inactive_file 500\n",
        },
    )
    assert read_limits(tmp_path / "fs", tmp_path / "self") == CgroupLimits(2.0, 2048)
    assert read_memory_used(tmp_path / "fs", tmp_path / "self") == 1000


def test_a_group_of_the_host_that_a_container_cannot_see(tmp_path: Path) -> None:
    _write(tmp_path, {"self": "0::/system.slice/docker-1\n", "fs/cpu.max": "50000 100000\n", "fs/memory.max": "4096\n"})
    assert read_limits(tmp_path / "fs", tmp_path / "self") == CgroupLimits(0.5, 4096)


def test_no_cgroup_at_all_limits_nothing(tmp_path: Path) -> None:
    assert read_limits(tmp_path / "none", tmp_path / "none") == CgroupLimits(None, None)
    assert read_memory_used(tmp_path / "none", tmp_path / "none") is None


def test_garbage_limits_nothing(tmp_path: Path) -> None:
    _write(tmp_path, {"self": "nonsense\n", "fs/cpu.max": "a lot\n", "fs/memory.max": "-\n"})
    assert read_limits(tmp_path / "fs", tmp_path / "self") == CgroupLimits(None, None)


def test_parsing() -> None:
    assert parse_membership("3:cpu,cpuacct:/x\n0::/y\n") == {"cpu": "/x", "cpuacct": "/x", "": "/y"}
    assert parse_stat("anon 5\nbroken\nfile x\n") == {"anon": 5}


def test_capacity_is_the_least_of_all_limits() -> None:
    settings = AgentSettings(node_id="a", data_dir=Path("/d"), disk_bytes=7)
    host = HostFacts(affinity_cores=8, memory_bytes=1000, disk_bytes=5000, limits=CgroupLimits(2.5, 600))
    capacity = capacity_of(settings, host, GpuInventory(error="broken"))
    assert (capacity.cpu_cores, capacity.memory_bytes, capacity.disk_bytes) == (2.5, 600, 7)
    assert capacity.gpu_error == "broken"
    settings = AgentSettings(node_id="a", data_dir=Path("/d"))
    assert capacity_of(settings, host, GpuInventory()).disk_bytes == 5000
    unlimited = HostFacts(affinity_cores=2, memory_bytes=1000, disk_bytes=5000, limits=CgroupLimits())
    assert capacity_of(settings, unlimited, GpuInventory()).cpu_cores == 2


def test_settings_override_what_was_found() -> None:
    settings = AgentSettings(node_id="a", data_dir=Path("/d"), cpu_cores=1.5, memory_bytes=12)
    host = HostFacts(affinity_cores=8, memory_bytes=1000, disk_bytes=5000, limits=CgroupLimits())
    capacity = capacity_of(settings, host, GpuInventory())
    assert (capacity.cpu_cores, capacity.memory_bytes) == (1.5, 12)


def test_this_machine_can_be_read(tmp_path: Path) -> None:
    host = HostFacts.read(tmp_path)
    assert host.affinity_cores >= 1
    assert host.memory_bytes > 0


def test_kills_for_want_of_memory_are_counted(tmp_path: Path) -> None:
    _write(
        tmp_path,
        {"self": "0::/a\n", "fs/a/memory.events": "oom 3\noom_kill 2\n", "vmstat": "nr_free_pages 9\noom_kill 5\n"},
    )
    assert read_oom_kills(tmp_path / "fs", tmp_path / "self", tmp_path / "vmstat") == 7
    assert read_oom_kills(tmp_path / "none", tmp_path / "none", tmp_path / "none") == 0
