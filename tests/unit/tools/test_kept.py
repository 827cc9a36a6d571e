"""What may be done with the data of an earlier start."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshkit.errors import DataLossError, PreconditionError
from tools.local.kept import check_etcd, prepare_data
from tools.local.layout import Layout


def started(layout: Layout) -> None:
    """Leaves what a start leaves."""
    prepare_data(layout)
    for name in layout.etcd_names:
        (layout.data_dir(name) / "member").mkdir(parents=True)


def test_a_new_place_takes_any_mesh(tmp_path: Path) -> None:
    for count in (1, 3):
        check_etcd(Layout(tmp_path, 8500, 1, etcd_count=count))


@pytest.mark.parametrize(("had", "asked"), [(1, 3), (3, 1)])
def test_another_number_of_members_is_refused_with_what_to_do(tmp_path: Path, had: int, asked: int) -> None:
    started(Layout(tmp_path, 8500, 1, etcd_count=had))
    with pytest.raises(PreconditionError, match=f"belongs to {had} member.* not {asked}") as caught:
        check_etcd(Layout(tmp_path, 8500, 1, etcd_count=asked))
    assert f"--etcd {had}" in caught.value.hint


def test_several_members_keep_their_ports_and_one_need_not(tmp_path: Path) -> None:
    one, three = tmp_path / "one", tmp_path / "three"
    for place, count in ((one, 1), (three, 3)):
        place.mkdir()
        started(Layout(place, 8500, 1, etcd_count=count))
        check_etcd(Layout(place, 8500, 4, 2, count))
    check_etcd(Layout(one, 8600, 1))
    with pytest.raises(PreconditionError, match="ports from 8500 on, not 8600") as caught:
        check_etcd(Layout(three, 8600, 1, etcd_count=3))
    assert "--port-base 8500" in caught.value.hint


def test_a_start_that_failed_before_etcd_wrote_binds_nobody(tmp_path: Path) -> None:
    prepare_data(Layout(tmp_path, 8500, 1, etcd_count=3))
    check_etcd(Layout(tmp_path, 8500, 1))


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    layout = Layout(tmp_path, 8500, 1, etcd_count=3)
    started(layout)
    (tmp_path / "data" / "etcd.json").write_text("{")
    with pytest.raises(DataLossError, match=r"etcd\.json"):
        check_etcd(layout)


def test_fewer_coordinators_keep_all_blobs(tmp_path: Path) -> None:
    three = Layout(tmp_path, 8500, 1, coordinator_count=3)
    for name, blobs in zip(three.coordinator_names, ("a", "ab", "bc"), strict=True):
        (three.data_dir(name) / "blobs").mkdir(parents=True)
        for blob in blobs:
            (three.data_dir(name) / "blobs" / blob).write_text(blob)
    prepare_data(Layout(tmp_path, 8500, 1, coordinator_count=2))
    kept = [{path.name for path in (three.data_dir(name) / "blobs").iterdir()} for name in three.coordinator_names]
    assert kept == [{"a", "b", "c"}, {"a", "b"}, set()]
