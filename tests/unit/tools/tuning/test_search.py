from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from meshkit.errors import NotFoundError, PreconditionError, UnavailableError
from tests.unit.tools.tuning.service import FAILED, SUCCEEDED, Script, Scripted, serving
from tools.cli.target import Mesh
from tools.tuning import claims, search, service
from tools.tuning.ledger import Ledger, Task
from tools.tuning.reading import study_of
from tools.tuning.search import Search, publish
from tools.tuning.storage import names, open_storage
from tools.tuning.studyfile import Tune, facts, read_study
from tools.tuning.view import shown, study_json

STUDY = """
name = "flowers"
task = "classifier"
epochs = 1
[data]
builtin = "iris"
holdout = 0.2
[output]
model = "garden"
[tune]
metric = "accuracy"
direction = "maximize"
sampler = "grid"
parallel = 1
[tune.search]
x = { type = "int", low = 0, high = 5 }
kind = { type = "categorical", choices = [[1]] }
"""


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables, which take their time to be made."""
    path = tmp_path_factory.mktemp("tuning") / "empty.db"
    storage, _ = open_storage(f"sqlite:///{path}")
    storage.engine.dispose()
    return path


@pytest.fixture
def url(empty: Path, tmp_path: Path) -> str:
    shutil.copy(empty, tmp_path / "tuning.db")
    return f"sqlite:///{tmp_path / 'tuning.db'}"


class Studies:
    """Opens the same study again and again, as commands do."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url = url
        (folder / "study.toml").write_text(STUDY)
        self.file = read_study(folder / "study.toml")
        self.tune = self.file.tune
        self.opened: list[Ledger] = []

    def ledger(self, tune: Tune | None = None) -> Ledger:
        made = Ledger(*open_storage(self.url)[:1], self.tune.study, "the test's")
        self.opened.append(made)
        made.begin(tune or self.tune, facts(tune or self.tune, self.file.job.spec))
        return made

    def search(self, mesh: Mesh, ledger: Ledger, tune: Tune | None = None) -> Search:
        return Search(mesh, ledger, tune or self.tune, self.file.job.spec)


@pytest.fixture
def studies(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Studies]:
    monkeypatch.setattr(search, "LOOK_S", 0.05)
    made = Studies(url, tmp_path)
    yield made
    for ledger in made.opened:
        ledger.close()


def by_x(x: dict[str, int]) -> Script:
    return Script(value=x["x"] / 10, loss=float(x["x"]))


async def test_a_study_from_its_first_trial_to_its_published_best(studies: Studies) -> None:
    jobs = Scripted(lambda x: replace(by_x(x), holds_at=2), drops=1)
    ledger = studies.ledger()
    tune = replace(studies.tune, parallel=3, pruner="none")
    async with serving(jobs) as mesh, asyncio.timeout(60):
        searching = asyncio.create_task(studies.search(mesh, ledger, tune).run())
        await jobs.until_watched(3)
        jobs.released.set()
        await searching
        assert all(job.state == SUCCEEDED and job.spec.output.discard for job in jobs.jobs.values())
        assert jobs.most_watches == 3
        found = study_of(ledger)
        assert [trial.value for trial in found.trials] == [trial.params["x"] / 10 for trial in found.trials]
        assert {trial.params["x"] for trial in found.trials} == set(range(6))
        assert found.best is not None
        assert found.best.params == {"x": 5, "kind": "[1]"}
        assert [len(trial.intermediate_values) for trial in found.trials] == [4] * 6
        best = await publish(mesh, ledger, tune, studies.file.job.spec)
        assert (best.model, best.spec.hyperparameters["x"], best.spec.hyperparameters["kind"]) == (
            "garden:1.0.0",
            "5",
            "[1]",
        )
        assert (await publish(mesh, ledger, tune, studies.file.job.spec)).id == best.id
        await studies.search(mesh, studies.ledger(), tune).run()
    assert len(jobs.jobs) == 7
    assert study_json(found)["best"]["job"] == found.best.user_attrs["job"]
    assert names(studies.url) == ["flowers"]


async def test_a_trial_worse_than_the_median_is_cancelled_and_says_why(studies: Studies) -> None:
    jobs = Scripted(lambda x: replace(by_x(x), holds_at=2 if len(jobs.jobs) > 4 else 0, loss=float(len(jobs.jobs))))
    ledger = studies.ledger()
    async with serving(jobs) as mesh:
        await studies.search(mesh, ledger).run()
    states = [trial.state.name for trial in ledger.trials()]
    assert states == ["COMPLETE"] * 4 + ["PRUNED"] * 2
    pruned = ledger.trials()[4]
    reason = jobs.reasons[pruned.user_attrs["job"]]
    assert reason == "pruned after 25%: 5 is worse than the median of the others, study flowers"
    assert study_json(study_of(ledger))["trials"][4]["on_the_way"] == {"0.25": 5.0}


async def test_a_failed_job_is_a_failed_trial(studies: Studies) -> None:
    jobs = Scripted(lambda x: replace(by_x(x), error="" if x["x"] % 2 else "rank 0: boom"))
    ledger = studies.ledger()
    async with serving(jobs) as mesh:
        await studies.search(mesh, ledger).run()
    assert {trial.params["x"]: trial.user_attrs.get("error") for trial in ledger.trials()} == {
        x: None if x % 2 else "rank 0: boom" for x in range(6)
    }
    assert shown(study_of(ledger))


async def test_a_search_in_which_everything_fails_stops(studies: Studies) -> None:
    jobs = Scripted(lambda x: Script(error="no module named torch"))
    ledger = studies.ledger()
    async with serving(jobs) as mesh:
        with pytest.raises(ExceptionGroup) as caught:
            await studies.search(mesh, ledger).run()
    assert caught.group_contains(PreconditionError, match="the first 3 trials failed.*no module named torch")
    assert len(jobs.jobs) == 3
    with pytest.raises(NotFoundError, match="no trial of study 'flowers' was completed"):
        ledger.best()


async def test_a_job_that_is_refused_or_gone_fails_its_trial(studies: Studies, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "UNSEEN_S", 0.0)
    jobs = Scripted(by_x)
    jobs.on_submit = lambda job: jobs.jobs.pop(job.id) and None if len(jobs.requests) == 1 else None
    ledger = studies.ledger()
    async with serving(jobs) as mesh:
        await studies.search(mesh, ledger).run()
    first, *others = ledger.trials()
    assert "there is no job" in first.user_attrs["error"]
    assert [trial.state.name for trial in others] == ["COMPLETE"] * 5


async def test_two_commands_share_a_study(studies: Studies) -> None:
    jobs = Scripted(by_x)
    tune = replace(studies.tune, parallel=2, pruner="none")
    async with serving(jobs) as mesh, asyncio.TaskGroup() as group:
        for ledger in (studies.ledger(), studies.ledger()):
            group.create_task(studies.search(mesh, ledger, tune).run())
    assert sorted(jobs.requests) == sorted(set(jobs.requests))
    assert sorted(job.spec.hyperparameters["x"] for job in jobs.jobs.values()) == list("012345")
    assert len(studies.ledger().trials()) == 6


async def test_commands_that_begin_at_once_draw_different_trials(studies: Studies) -> None:
    tune = replace(studies.tune, sampler="random", trials=4)
    first, second = studies.ledger(tune), studies.ledger(tune)
    drawn = [ledger.fresh(tune, 4) for ledger in (first, second, second, first)]
    assert first.fresh(tune, 4) is None
    assert [task.number for task in drawn if task] == [0, 1, 2, 3]
    assert len({task.labels["x"] for task in drawn if task}) > 2


async def test_what_a_stopped_command_left_is_followed_again(studies: Studies) -> None:
    """The first gives up in the middle of its watch; the next finds the same jobs, and submits only what is new."""
    jobs = Scripted(lambda x: replace(by_x(x), holds_at=2))
    tune = replace(studies.tune, parallel=2)
    ledger = studies.ledger()
    async with serving(jobs) as mesh:
        first = asyncio.create_task(studies.search(mesh, ledger, tune).run())
        await jobs.until_watched(2)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        ledger.release()
        jobs.released.set()
        await studies.search(mesh, studies.ledger(), tune).run()
    assert len(jobs.requests) == len(jobs.jobs) == 6
    assert all(job.state != FAILED for job in jobs.jobs.values())


async def test_a_trial_that_another_command_has_ended_is_let_go(studies: Studies) -> None:
    """As for a command that was suspended, whose trial was taken over meanwhile."""
    jobs = Scripted(lambda x: replace(by_x(x), holds_at=2))
    ledger, other = studies.ledger(), studies.ledger()
    async with serving(jobs) as mesh:
        searching = asyncio.create_task(studies.search(mesh, ledger).run())
        await jobs.until_watched(1)
        other.study.tell(0, 0.25)
        jobs.released.set()
        await searching
    assert [trial.state.name for trial in ledger.trials()] == ["COMPLETE"] * 6
    assert ledger.trials()[0].value == 0.25


def test_a_claim_is_taken_over_once_and_only_from_who_stands_still(studies: Studies) -> None:
    now = [0.0]
    owner = "elsewhere/boot/1/1.0/abc"
    first = claims.Claims(studies.ledger().storage.engine, "s", owner)
    others = [claims.Claims(first.engine, "s", f"elsewhere/boot/2/1.0/{name}", lambda: now[0]) for name in "ab"]
    assert first.take_new(0)
    assert not others[0].take_new(0)
    for _ in range(4):  # it lives, however long it takes
        assert [other.take_over([0]) for other in others] == [None, None]
        first.beat()
        now[0] += claims.LEASE_S / 2
    assert [other.take_over([0]) for other in others] == [None, None]
    now[0] += claims.LEASE_S
    assert [other.take_over([0]) for other in others] == [0, None]
    others[0].release()
    assert others[1].take_over([0]) == 0
    others[1].drop(0)
    assert first.take_new(0)


def test_a_process_that_is_gone_from_this_host_is_not_waited_for(studies: Studies) -> None:
    engine = studies.ledger().storage.engine
    mine = claims.Claims(engine, "s")
    host, boot, _, started, _ = mine.owner.split("/")
    dead = claims.Claims(engine, "s", f"{host}/{boot}/4194999/{started}/abc")
    assert dead.take_new(3)
    assert mine.take_over([3]) == 3
    assert claims.Claims(engine, "s").take_over([3]) is None


def test_a_trial_that_was_begun_keeps_its_request(studies: Studies) -> None:
    ledger = studies.ledger()
    begun = ledger.fresh(studies.tune, 6)
    assert isinstance(begun, Task)
    ledger.release()
    again = studies.ledger().orphan(studies.tune)
    assert again == begun
    assert studies.ledger().orphan(studies.tune) is None


@pytest.mark.parametrize("sampler", ["grid", "tpe", "random"])
def test_a_trial_whose_command_was_killed_while_it_drew_is_drawn_to_the_end(studies: Studies, sampler: str) -> None:
    tune = replace(studies.tune, sampler=sampler)
    ledger = studies.ledger(tune)
    ledger.storage.create_new_trial(ledger.storage.get_study_id_from_name(studies.tune.study))
    ledger.claims.take_new(0)
    ledger.release()
    task = studies.ledger(tune).orphan(tune)
    assert task is not None
    assert set(task.labels) == {"x", "kind"}
    assert ledger.trials()[0].params == task.labels


def test_a_study_that_is_changed_does_not_go_on(studies: Studies) -> None:
    studies.ledger()
    with pytest.raises(PreconditionError, match="'flowers' was begun with another direction and metric") as caught:
        studies.ledger(replace(studies.tune, metric="loss", direction="minimize"))
    assert caught.value.reason == "TUNE_CHANGED"


def test_a_study_that_nobody_began(studies: Studies) -> None:
    studies.ledger()
    storage, where = open_storage(studies.url)
    with pytest.raises(NotFoundError, match="there is no study 'weeds'") as caught:
        Ledger(storage, "weeds", where).open()
    assert "flowers" in caught.value.hint
    storage.engine.dispose()


def test_a_database_that_cannot_be_had_says_which_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"/none/tuning.db does not do its work"):
        open_storage(f"sqlite:///{tmp_path}/none/tuning.db")
    with pytest.raises(UnavailableError, match=r"me:\*\*\*@127.0.0.1:1/"):
        open_storage("postgresql://me:secret@127.0.0.1:1/db")
