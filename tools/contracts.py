"""Generates the code of the contracts in proto/, and checks that what is committed is what they say.

python -m tools.contracts generate     writes the code beside the .proto files
python -m tools.contracts verify       code is current, buf lint passes, nothing breaks against the last commit
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROTO = ROOT / "proto"
BUF = ROOT / "node_modules" / ".bin" / "buf"


def main() -> int:
    """Runs the verb on the command line; 0 when all is well."""
    verbs = {"generate": lambda: generate(PROTO), "verify": verify}
    if len(sys.argv) != 2 or sys.argv[1] not in verbs:
        print(__doc__)
        return 2
    return verbs[sys.argv[1]]()


def generate(into: Path) -> int:
    """Runs protoc with the Python, gRPC and mypy plugins on every contract. protoc's exit status."""
    sources = [str(path) for path in sorted(PROTO.rglob("*.proto"))]
    plugins = [f"--{name}_out={into}" for name in ("python", "grpc_python")]
    typed = [f"--{name}_out=quiet:{into}" for name in ("mypy", "mypy_grpc")]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    argv = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={PROTO}", *plugins, *typed, *sources]
    return subprocess.run(argv, env={**os.environ, "PATH": path}, check=False).returncode


def verify() -> int:
    """Every check in turn; 0 when all pass."""
    return _verify_generated() or _buf("lint") or _verify_breaking()


def _verify_generated() -> int:
    with tempfile.TemporaryDirectory() as folder:
        if generate(Path(folder)):
            return 1
        fresh = {path.relative_to(folder) for path in Path(folder).rglob("*_pb2*")}
        committed = {path.relative_to(PROTO) for path in PROTO.rglob("*_pb2*.py*") if path.suffix in (".py", ".pyi")}
        stale = fresh ^ committed
        stale |= {
            name for name in fresh & committed if not filecmp.cmp(Path(folder) / name, PROTO / name, shallow=False)
        }
    if stale:
        print(f"verify-proto: not current: {', '.join(sorted(map(str, stale)))}; run 'make fix-proto'")
    return int(bool(stale))


def _verify_breaking() -> int:
    """Against the last commit, or the one before when the contracts are as committed."""
    dirty = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "proto"], cwd=ROOT, check=False).returncode
    base = "HEAD" if dirty else "HEAD~1"
    known = subprocess.run(
        ["git", "rev-parse", "--verify", "--quiet", f"{base}:proto"],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
    )
    if known.returncode:  # the first commit, or a shallow clone: nothing to compare with
        return 0
    commit = subprocess.run(["git", "rev-parse", base], cwd=ROOT, check=True, capture_output=True, text=True)
    return _buf("breaking", "--against", f".git#ref={commit.stdout.strip()}")


def _buf(*argv: str) -> int:
    if not BUF.exists():
        print("verify-proto: buf is not installed (it comes with npm); its checks are skipped")
        return int(os.environ.get("AIMESH_REQUIRE_ALL") == "1")
    status = subprocess.run([BUF, *argv], cwd=ROOT, check=False).returncode
    if status:
        print(f"verify-proto: buf {argv[0]} refuses the contracts; mend the lines above")
    return status


if __name__ == "__main__":
    raise SystemExit(main())
