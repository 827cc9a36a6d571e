from __future__ import annotations

import os
from pathlib import Path

import pytest

from meshkit.errors import DataLossError, PreconditionError, UnavailableError
from meshkit.process import ProcessId
from tools.cli.progress import PartsView
from tools.cli.target import find_mesh
from tools.local.control import running_as_asked
from tools.local.layout import Layout
from tools.local.record import (
    MeshRecord,
    Part,
    default_state_dir,
    make_state_dir,
    read_record,
    update_part,
    write_record,
)
from tools.local.supervisor import Request

ME = ProcessId.of(os.getpid())
GONE = ProcessId(pid=os.getpid(), started=1.0)


def test_a_record_reads_back_as_written(tmp_path: Path) -> None:
    record = MeshRecord(Layout(tmp_path, 8600, 2), supervisor=ME, ready=True)
    record = update_part(record, "etcd", Part("ready", "so it is"), ME)
    write_record(record)
    assert read_record(tmp_path) == record
    assert [path.name for path in tmp_path.iterdir()] == ["mesh.json"]


def test_no_record_is_no_mesh(tmp_path: Path) -> None:
    assert read_record(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"port_base": 8500}', '{"port_base": "x"}'])
def test_a_damaged_record_is_an_error_that_names_the_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "mesh.json").write_text(text)
    with pytest.raises(DataLossError, match=r"mesh\.json"):
        read_record(tmp_path)


def test_a_pid_that_was_given_to_another_process_is_not_running(tmp_path: Path) -> None:
    layout = Layout(tmp_path, 8600, 1)
    assert not MeshRecord(layout, supervisor=GONE, processes={"etcd": GONE}).running
    assert MeshRecord(layout, supervisor=GONE, processes={"etcd": ME}).running
    assert not MeshRecord(layout, supervisor=GONE, processes={"etcd": ME}).supervised


def test_a_stopped_mesh_keeps_its_place(tmp_path: Path) -> None:
    record = MeshRecord(Layout(tmp_path, 8600, 2), supervisor=ME, processes={"etcd": ME}, ready=True).stopped()
    assert record.layout == Layout(tmp_path, 8600, 2)
    assert not record.running
    assert not record.ready


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"AIMESH_STATE_DIR": "/x", "XDG_STATE_HOME": "/y"}, "/x"),
        ({"XDG_STATE_HOME": "/y"}, "/y/aimesh"),
        ({}, f"{Path.home()}/.local/state/aimesh"),
    ],
)
def test_where_the_mesh_is_kept(environ: dict[str, str], expected: str) -> None:
    assert default_state_dir(environ) == Path(expected)


def test_a_place_where_nothing_can_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PreconditionError, match="Not a directory"):
        make_state_dir(tmp_path / "file" / "mesh")


def test_progress_in_a_pipe_is_a_line_for_each_change(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = MeshRecord(Layout(tmp_path, 8600, 1))
    with PartsView() as view:
        for state in ("waiting", "starting", "starting", "ready"):
            record = update_part(record, "etcd", Part(state))
            view.show(record)
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split() for line in err.splitlines()] == [["etcd", "starting"], ["etcd", "ready"]]


def running(state_dir: Path) -> MeshRecord:
    record = MeshRecord(Layout(state_dir, 8600, 1), supervisor=ME)
    write_record(record)
    return record


def test_the_flag_wins_over_the_environment(tmp_path: Path) -> None:
    record = running(tmp_path)
    mesh = find_mesh(tmp_path, {"AIMESH_COORDINATORS": "far:1", "AIMESH_GATEWAY": "far:2"})
    assert (mesh.coordinators, mesh.gateway) == (record.layout.coordinators, record.layout.gateway)


def test_the_environment_names_a_mesh_elsewhere(tmp_path: Path) -> None:
    running(tmp_path)
    environ = {"XDG_STATE_HOME": str(tmp_path), "AIMESH_COORDINATORS": "a:1, b:1", "AIMESH_GATEWAY": "g:2"}
    mesh = find_mesh(None, environ)
    assert (mesh.coordinators, mesh.gateway, mesh.state_dir, mesh.record) == (("a:1", "b:1"), "g:2", None, None)


def test_the_state_dir_names_the_mesh_also_when_another_was_exported_before(tmp_path: Path) -> None:
    record = running(tmp_path)
    mesh = find_mesh(None, {"AIMESH_STATE_DIR": str(tmp_path), "AIMESH_COORDINATORS": "elsewhere:1"})
    assert (mesh.state_dir, mesh.coordinators) == (tmp_path, record.layout.coordinators)


def test_no_mesh_says_where_and_how_to_start_one(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=str(tmp_path)) as caught:
        find_mesh(None, {"AIMESH_STATE_DIR": str(tmp_path)})
    assert "aimesh up" in caught.value.hint


def test_a_mesh_that_is_being_stopped_is_not_taken_for_one_that_runs(tmp_path: Path) -> None:
    record = MeshRecord(Layout(tmp_path, 8600, 1), supervisor=ME, ready=True, parts={"etcd": Part("ready")})
    write_record(record)
    assert running_as_asked(Request(tmp_path)) == record
    write_record(update_part(record, "gateway", Part("stopping")))
    with pytest.raises(PreconditionError, match="is being stopped"):
        running_as_asked(Request(tmp_path))
