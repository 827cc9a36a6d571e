"""What a node refuses to load, finds damaged, runs before a version, and measures; on a real Triton."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import duration_pb2

from aimesh.registry.v1 import registry_pb2
from meshkit.signing import raw_public, sign
from meshkit.versions import version_digest
from node_agent.plan import FAILED, READY
from tests.mesh.node_agent.nodes import Node, running_node
from tests.mesh.node_agent.support import Blobs, add_model
from tests.processes import eventually

MIB = 1024**2
TENSOR = registry_pb2.TensorSpec(name="x", data_type=registry_pb2.DATA_TYPE_INT32, shape=[-1])


def _flip(path: Path) -> None:
    """Changes one byte where it lies, whoever links to it."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    with path.open("r+b") as file:
        file.write(content)


def _promising(blobs: Blobs, name: str, output: registry_pb2.TensorSpec) -> registry_pb2.ModelVersion:
    version = blobs.version(name, "1.0.0", add_model(1))
    version.signature.CopyFrom(registry_pb2.Signature(inputs=[TENSOR], outputs=[output]))
    return _digested(version)


def _migrating(blobs: Blobs, name: str, script: str, timeout_s: int = 20) -> registry_pb2.ModelVersion:
    version = blobs.version(name, "1.1.0", add_model(1))
    digest, size = blobs.add(script)
    version.files.add(path="migration/run", digest=digest, size=size)
    version.migration.path, version.replaces = "migration/run", "1.0.0"
    version.migration.timeout.CopyFrom(duration_pb2.Duration(seconds=timeout_s))
    return _digested(version)


def _digested(version: registry_pb2.ModelVersion) -> registry_pb2.ModelVersion:
    version.digest = version_digest(version)
    return version


async def test_only_what_a_trusted_key_signed_is_loaded(tmp_path: Path) -> None:
    key = Ed25519PrivateKey.generate()
    trust = registry_pb2.Trust(keys=[registry_pb2.TrustedKey(name="release", public_key=raw_public(key))])
    async with running_node(tmp_path) as node:
        blobs = node.coordinator.blobs
        before, after = blobs.version("before", "1.0.0", add_model(1)), blobs.version("after", "1.0.0", add_model(2))
        promising = registry_pb2.TensorSpec(name="y", data_type=registry_pb2.DATA_TYPE_FP32, shape=[-1])
        liar = _promising(blobs, "liar", promising)
        poison = _promising(blobs, "poison", registry_pb2.TensorSpec(name="y", data_type=99))  # type: ignore[arg-type]
        batches = _promising(blobs, "batches", TENSOR)
        batches.signature.max_batch_size, batches.runtime = 2**32 - 1, "onnx"
        await node.coordinator.assign(before, liar, poison, _digested(batches), trust=trust)
        await node.reaches("poison", "1.0.0", FAILED)
        await node.reaches("batches", "1.0.0", FAILED)
        await node.reaches("before", "1.0.0", READY)
        await node.reaches("liar", "1.0.0", FAILED)
        assert "output y is INT32, not FP32" in node.coordinator.message("liar")
        _check_measured(node, "before")

        trust.signed_only = True
        changed = blobs.version("changed", "1.0.0", add_model(3))
        changed.self_test = changed.self_test.replace("1", "7", 1)
        await node.coordinator.assign(before, after, changed, trust=trust)
        await node.reaches("after", "1.0.0", FAILED)
        await node.reaches("changed", "1.0.0", FAILED)
        assert "nobody signed it" in node.coordinator.message("after")
        assert "recorded with" in node.coordinator.message("changed")
        assert await node.ask("before", 1) == [2], "what is loaded goes on"

        later = blobs.version("later", "1.0.0", add_model(4))
        await node.coordinator.assign(before, after, later)
        await node.reaches("later", "1.0.0", FAILED)
        assert "nobody signed it" in node.coordinator.message("later"), "a coordinator that knows no trust changes none"

        after.signatures.append(sign(after, key))
        await node.coordinator.assign(before, after, trust=trust)
        await node.reaches("after", "1.0.0", READY)
        node.stubs("before")[0].kill()
        await node.reaches("before", "1.0.0", FAILED)
        await eventually(lambda: "nobody signed it" in node.coordinator.message("before"))


def _check_measured(node: Node, name: str) -> None:
    found = next(model for model in node.coordinator.reports[-1].models if model.name == name)
    assert 8 * MIB < found.measured_memory_bytes < 1024 * MIB, "a Python process with NumPy, and not the machine"
    assert 0 < found.load_time.ToMilliseconds() < 60_000


async def test_a_flipped_byte_is_found_and_repaired_before_a_load(tmp_path: Path) -> None:
    blobs = Blobs()
    names = ("blob", "copy", "template", "whole")
    versions = [blobs.version(name, "1.0.0", add_model(number)) for number, name in enumerate(names)]
    async with running_node(tmp_path) as node:
        node.coordinator.blobs.update(blobs)
        await node.coordinator.assign(*versions)
        for name in names:
            await node.reaches(name, "1.0.0", READY)
        damaged, laid_out = node.blobs / versions[0].files[0].digest, tmp_path / "repository"
    _flip(damaged)
    copy = laid_out / "copy/1/model.py"
    content = copy.read_bytes()
    copy.unlink()
    copy.write_bytes(content.replace(b"+ 1", b"+ 9"))  # on a disk without links, say
    _flip(laid_out / "template/config.pbtxt")
    for compiled in (laid_out / "whole/1/__pycache__").iterdir():
        _flip(compiled)
    async with running_node(tmp_path) as node:
        node.coordinator.blobs.update(blobs)
        await node.coordinator.assign(*versions)
        for number, name in enumerate(names):
            await node.reaches(name, "1.0.0", READY)
            assert await node.ask(name, 1) == [1 + number]
        assert {digest for digest, _ in node.coordinator.downloads} == {damaged.name}, "what is whole is not fetched"
        assert (laid_out / "blob/1/model.py").read_bytes() == blobs[damaged.name]


async def test_a_migration_runs_once_before_the_version_gets_requests(tmp_path: Path) -> None:
    said = tmp_path / "said"
    script = f'#!/bin/sh\nset -e\ntest -f config.pbtxt\nenv >> {said}\necho "moved $AIMESH_MODEL"\n'
    async with running_node(tmp_path) as node:
        blobs = node.coordinator.blobs
        good = _migrating(blobs, "good", script)
        fails = _migrating(blobs, "fails", "#!/bin/sh\necho no such table >&2\nexit 3\n")
        slow = _migrating(blobs, "slow", f"#!/bin/sh\nsleep 600 & echo $! > {tmp_path}/child\nwait\n", timeout_s=1)
        await node.coordinator.assign(good, fails, slow)
        await node.reaches("good", "1.1.0", READY)
        await node.reaches("fails", "1.1.0", FAILED)
        await node.reaches("slow", "1.1.0", FAILED)
        assert "exit code 3, saying: no such table" in node.coordinator.message("fails")
        assert "did not end within 1 s" in node.coordinator.message("slow")
        child = int((tmp_path / "child").read_text())
        await eventually(lambda: not Path(f"/proc/{child}").exists() or _zombie(child))
        environment = dict(line.partition("=")[::2] for line in said.read_text().splitlines())
        told = {name: value for name, value in environment.items() if name.startswith("AIMESH_")}
        assert told == {"AIMESH_MODEL": "good", "AIMESH_VERSION": "1.1.0", "AIMESH_PREVIOUS_VERSION": "1.0.0"}
        assert set(environment) <= {*told, "PATH", "PWD", "OLDPWD", "SHLVL", "_"}, "nothing of the agent's own"
        assert (tmp_path / "migrations/good-1.1.0.log").read_text() == "moved good\n"

        await node.coordinator.assign()
        await eventually(lambda: node.coordinator.states() == {})
        await node.coordinator.assign(good)
        await node.reaches("good", "1.1.0", READY)
        assert said.read_text().count("AIMESH_MODEL") == 1, "once for each content"


def _zombie(pid: int) -> bool:
    return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
