from __future__ import annotations

from pathlib import Path

import pytest

from tools.doctor import machine, software
from tools.doctor.checks import CHECKS
from tools.doctor.finding import Finding

GIB = 1 << 30


@pytest.mark.parametrize(
    ("finding", "level"),
    [
        (software.judge_python("3.11.7", "/v"), "ok"),
        (software.judge_python("3.12.1", "/v"), "fail"),
        (software.judge_numpy("1.26.4"), "ok"),
        (software.judge_numpy("2.0.0"), "fail"),
        (software.judge_glibc("glibc", "2.36"), "ok"),
        (software.judge_glibc("glibc", "2.31"), "fail"),
        (software.judge_glibc("", ""), "fail"),
        (software.judge_etcd("etcd Version: 3.4.23\nGit SHA: x", "/e"), "ok"),
        (software.judge_etcd("etcd Version: 3.5.0", "/e"), "warn"),
        (software.judge_etcd("etcd Version: 3.5.2", "/e"), "warn"),
        (software.judge_etcd("etcd Version: 3.5.3", "/e"), "ok"),
        (software.judge_etcd("cannot execute binary file", "/e"), "fail"),
        (machine.judge_file_limit(1024, 1024), "fail"),
        (machine.judge_file_limit(1024, 1 << 20), "fail"),
        (machine.judge_file_limit(4096, 4096), "ok"),
        (machine.judge_file_limit(-1, -1), "ok"),
        (machine.judge_disk(GIB // 2, Path("/")), "fail"),
        (machine.judge_disk(2 * GIB, Path("/")), "warn"),
        (machine.judge_disk(50 * GIB, Path("/")), "ok"),
        (machine.judge_memory(GIB, 2), "fail"),
        (machine.judge_memory(3 * GIB, 2), "warn"),
        (machine.judge_memory(16 * GIB, 2), "ok"),
    ],
)
def test_judgements(finding: Finding, level: str) -> None:
    assert finding.level == level, finding
    assert bool(finding.advice) == (level != "ok"), "what is not well says what to do, and nothing else does"


def test_every_check_is_there_once() -> None:
    names = [check.name for check in CHECKS]
    assert len(names) == len(set(names))
    assert {"etcd", "Triton start", "libpython", "NumPy", "Envoy", "GPUs", "ports", "file limit"} <= set(names)
