"""One behaviour of the experiments' database, held by SQLite and by PostgreSQL."""

from __future__ import annotations

import contextlib
import stat
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sqlalchemy as sql

from aimesh.experiment.v1 import experiment_pb2
from aimesh.identity.v1 import identity_pb2
from coordinator.experiments import lifecycle
from coordinator.experiments.schema import METADATA, VERSION_TABLE
from coordinator.experiments.store import ExperimentStore, Held, Result
from coordinator.order import Order
from meshkit.errors import ConflictError, InvalidInputError, NotFoundError, SupersededError, UnavailableError
from tests.unit.experiments.support import spec

ORDER = Order("key:ada", "because", 7)
DATASET = b'{"inputs": {"x": [1]}, "expected": 1}\n' * 100
RESULT = Result(experiment_pb2.Report(summary="as good"), '{"a": 1}')


def made(name: str, model: str = "m") -> experiment_pb2.Experiment:
    experiment = experiment_pb2.Experiment(spec=spec(name, model=model), hash="a" * 64)
    return lifecycle.moved(experiment, lifecycle.CREATED, ORDER)


def event(number: int) -> identity_pb2.AuditEvent:
    return identity_pb2.AuditEvent(id=f"{number:020d}-c1-aaaa", actor="key:ada", target="experiments/e1")


class Behaviour:
    """What every database does. `open_store` opens the same database anew; it is empty at first."""

    @pytest.fixture
    def open_store(self) -> Iterator[Callable[[], ExperimentStore]]:
        raise NotImplementedError

    @pytest.fixture
    def store(self, open_store: Callable[[], ExperimentStore]) -> ExperimentStore:
        return open_store()

    def test_what_was_created_is_found_by_another(
        self, store: ExperimentStore, open_store: Callable[[], ExperimentStore]
    ) -> None:
        store.create(made("e1"), DATASET, event(1))
        other = open_store()
        assert other.get("e1") == Held(made("e1"), 1)
        assert other.dataset("d" * 64) == DATASET
        assert [each.id for each in other.events(10)] == [event(1).id]
        assert other.result("e1") is None
        for missing in (lambda: other.get("e2"), lambda: other.dataset("e" * 64)):
            with pytest.raises(NotFoundError):
                missing()

    def test_a_name_is_taken_once_and_nothing_of_the_second_stays(self, store: ExperimentStore) -> None:
        store.create(made("e1"), DATASET, event(1))
        with pytest.raises(ConflictError, match="'e1' already"):
            store.create(made("e1", model="other"), DATASET, event(2))
        assert store.get("e1").experiment.spec.model == "m"
        assert len(store.events(10)) == 1

    def test_lists_go_back_in_time_by_page_and_model(self, store: ExperimentStore) -> None:
        for number in range(5):
            store.create(made(f"e{number}", model="even" if number % 2 == 0 else "odd"), DATASET, event(number))
        first = store.list(0, 3)
        assert [each.spec.name for _, each in first] == ["e4", "e3", "e2"]
        assert [each.spec.name for _, each in store.list(first[-1][0], 3)] == ["e1", "e0"]
        assert [each.spec.name for _, each in store.list(0, 3, "odd")] == ["e3", "e1"]

    def test_of_two_who_change_one_wins_and_a_result_is_written_once(self, store: ExperimentStore) -> None:
        store.create(made("e1"), DATASET, event(1))
        held = store.get("e1")
        executing = lifecycle.executing(held.experiment, 8)
        first = store.change(held, executing, event(2))
        with pytest.raises(SupersededError, match="changed at this moment"):
            store.change(held, executing, event(3))
        evaluated = lifecycle.moved(executing, lifecycle.EVALUATED, ORDER)
        assert store.change(first, evaluated, event(4), RESULT).revision == 3
        with pytest.raises(SupersededError):
            store.change(first, evaluated, event(5), Result(experiment_pb2.Report(summary="other"), "{}"))
        assert store.result("e1") == RESULT
        assert [each.id for each in store.events(10)] == [event(number).id for number in (1, 2, 4)]
        assert [each.experiment.spec.name for each in store.in_states([lifecycle.EVALUATED])] == ["e1"]
        assert store.in_states([lifecycle.CREATED, lifecycle.EXECUTING]) == []

    def test_events_leave_when_they_are_where_they_belong(self, store: ExperimentStore) -> None:
        store.create(made("e1"), DATASET, event(1))
        store.create(made("e2"), DATASET, event(2))
        store.forget_events([event(1).id])
        assert [each.id for each in store.events(10)] == [event(2).id]
        assert store.events(0) == []

    def test_many_who_begin_at_once_migrate_once_and_lose_nothing(
        self, open_store: Callable[[], ExperimentStore]
    ) -> None:
        barrier = threading.Barrier(4)

        def create(number: int) -> None:
            store = open_store()
            barrier.wait(30)
            for each in range(3):
                store.create(made(f"e{number}-{each}"), DATASET, event(10 * number + each))

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(create, range(4)))
        assert len(open_store().list(0, 100)) == 12

    def test_the_migrations_make_what_the_code_expects(self, store: ExperimentStore) -> None:
        store.create(made("e1"), DATASET, event(1))
        inspector = sql.inspect(store._database.engine)
        assert set(inspector.get_table_names()) == {*METADATA.tables, VERSION_TABLE}
        for name, table in METADATA.tables.items():
            assert {each["name"] for each in inspector.get_columns(name)} == set(table.columns.keys())
            indexed = {column for each in inspector.get_indexes(name) for column in each["column_names"]}
            assert {column.name for column in table.columns if column.index} <= indexed


class TestSqlite(Behaviour):
    @pytest.fixture
    def open_store(self, tmp_path: Path) -> Iterator[Callable[[], ExperimentStore]]:
        with opener(f"sqlite:///{tmp_path / 'experiments.sqlite'}") as opened:
            yield opened

    def test_its_file_is_its_owners_and_made_when_it_is_needed(self, store: ExperimentStore, tmp_path: Path) -> None:
        assert (store.shared, store.used) == (False, False)
        assert store.in_states([lifecycle.CREATED]) == []
        assert store.used
        assert stat.S_IMODE((tmp_path / "experiments.sqlite").stat().st_mode) == 0o600


class TestPostgres(Behaviour):
    @pytest.fixture(scope="class")
    def server(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
        pgserver = pytest.importorskip("pgserver")
        started = pgserver.get_server(tmp_path_factory.mktemp("postgres"), cleanup_mode="stop")
        yield started.get_uri()
        started.cleanup()

    @pytest.fixture
    def open_store(self, server: str) -> Iterator[Callable[[], ExperimentStore]]:
        engine = sql.create_engine(server.replace("postgresql://", "postgresql+psycopg://"))
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        engine.dispose()
        with opener(server) as opened:
            yield opened

    def test_it_is_shared(self, store: ExperimentStore) -> None:
        assert store.shared
        assert store.used


@contextlib.contextmanager
def opener(url: str) -> Iterator[Callable[[], ExperimentStore]]:
    opened: list[ExperimentStore] = []

    def open_one() -> ExperimentStore:
        opened.append(ExperimentStore(url))
        return opened[-1]

    try:
        yield open_one
    finally:
        for each in opened:
            each.close()


def test_a_database_that_is_away_says_so(tmp_path: Path) -> None:
    store = ExperimentStore(f"sqlite:///{tmp_path}/not-there/experiments.sqlite")
    with pytest.raises(UnavailableError, match="experiments' database") as failure:
        store.in_states([lifecycle.CREATED])
    assert failure.value.reason == "EXPERIMENT_STORE"
    (tmp_path / "not-there").mkdir()
    assert store.in_states([lifecycle.CREATED]) == []
    store.close()


def test_coordinators_of_one_machine_share_a_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/experiments.sqlite"
    assert ExperimentStore(url, one_machine=True).shared
    assert not ExperimentStore(url).shared


def test_a_url_that_is_none_is_refused() -> None:
    for url in ("nonsense", "oracle+none://x"):
        with pytest.raises(InvalidInputError, match=r"coordinator\.experiments\.url"):
            ExperimentStore(url)
