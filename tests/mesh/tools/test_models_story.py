from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.mesh.tools.meshes import MODEL, Aimesh

INVALID, NOT_FOUND, CONFLICT, PRECONDITION, EXHAUSTED = 2, 3, 4, 5, 7


def test_a_model_from_push_to_removal(mesh: Aimesh, tmp_path: Path) -> None:
    mesh.run("up", "--detach")
    assert mesh.json("models", "list") == []
    mesh.add_model()
    mesh.add_model()  # the same bytes again change nothing
    [version] = mesh.json("models", "list")
    assert (version["name"], version["version"], version["runtime"]) == ("adder", "1.0.0", "python")
    shown = mesh.run("models", "show", "adder").stdout
    assert "FP32" in shown

    # Capacity: one replica finds a place and serves, the other is reported.
    error = mesh.run("deploy", "adder:1.0.0", "--replicas", "2", code=EXHAUSTED).stderr
    assert "1 of 2 replicas" in error
    assert "node-1" in error
    assert "found no place" in mesh.run("status").stdout
    [deployed] = mesh.json("status")["deployments"]
    assert (deployed["wanted"], deployed["ready"]) == (2, 1)
    mesh.run("deploy", "adder", "--replicas", "1")

    assert mesh.adds()
    np.save(tmp_path / "x.npy", np.array([5], np.float32))
    assert "[6.]" in mesh.run("infer", "adder", "--input", f"x=@{tmp_path}/x.npy").stdout
    for wrong in ("z=[1]", 'x=["a"]', "x=[[1]]", "x=[1", "x"):
        assert "x" in mesh.run("infer", "adder", "--input", wrong, code=INVALID).stderr
    assert "not deployed" in mesh.run("infer", "nobody", "--input", "x=[1]", code=NOT_FOUND).stderr
    assert "deploy" in mesh.run("chat", "nobody", "hi", code=NOT_FOUND).stderr
    mesh.run("chat", "adder", "hi", code=INVALID)

    mesh.run("models", "show", "adder:9.9.9", code=NOT_FOUND)
    mesh.run("deploy", "adder:9.9.9", code=NOT_FOUND)
    mesh.run("models", "rm", "adder", code=INVALID)
    mesh.run("models", "rm", "adder:1.0.0", code=PRECONDITION)
    mesh.run("undeploy", "adder")
    mesh.run("undeploy", "adder", code=NOT_FOUND)
    mesh.run("models", "rm", "adder:1.0.0")
    assert mesh.json("models", "list") == []


def test_what_cannot_be_right_is_refused_and_nothing_is_lost(mesh: Aimesh, tmp_path: Path) -> None:
    mesh.run("up", "--detach")
    mesh.add_model()
    (tmp_path / "empty.gguf").write_bytes(b"")
    (tmp_path / "text.gguf").write_text("GGUF no more")
    for path in ("empty.gguf", "text.gguf", "missing"):
        mesh.run("models", "push", str(tmp_path / path), "--name", "m", "--version", "1.0.0", code=INVALID)
    source = str(mesh.state_dir / "source" / "1.0.0")
    for name, version in (("Not Allowed", "1.0.0"), ("m", "one")):
        mesh.run("models", "push", source, "--name", name, "--version", version, code=INVALID)
    changed = mesh.state_dir / "source" / "1.0.0" / "1" / "model.py"
    changed.write_text(MODEL + "# other bytes\n")
    mesh.run("models", "push", source, "--name", "adder", "--version", "1.0.0", code=CONFLICT)
    assert [version["version"] for version in mesh.json("models", "list")] == ["1.0.0"]

    # A model that fails to load says so, with the node and the reason.
    mesh.add_model(version="2.0.0", text=MODEL + "\n\nraise ValueError('no such luck')\n")
    error = mesh.run("deploy", "adder:2.0.0", code=PRECONDITION).stderr
    assert "node-1" in error
    assert "no such luck" in error
