from __future__ import annotations

import json
import subprocess
import sys


def test_the_doctor_tries_everything_and_says_what_fails() -> None:
    command = f"ulimit -n 1024 && exec {sys.executable} -m tools.cli.main doctor --json"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 5, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"] is False
    levels = {check["name"]: check["level"] for check in found["checks"]}
    assert [name for name, level in levels.items() if level == "fail"] == ["file limit"], found
    assert levels["Triton start"] == "ok"
    [limit] = [check for check in found["checks"] if check["name"] == "file limit"]
    assert "1024" in limit["seen"]
    assert "4096" in limit["advice"]
