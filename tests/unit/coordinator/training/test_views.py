"""What people are shown of a job, what it teaches, and what it may ask for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aimesh.membership.v1 import membership_pb2
from aimesh.registry.v1 import registry_pb2
from aimesh.training.v1 import training_pb2
from coordinator.settings import LessonSettings
from coordinator.state import State
from coordinator.training import blobs, record
from coordinator.training.check import check_job
from coordinator.training.lessons import lesson
from coordinator.training.progress import MOST_POINTS, curve, progress_of, thinned
from coordinator.training.results import lineage, result_version
from coordinator.training.versions import next_version
from meshkit.errors import InvalidInputError
from tests.unit.coordinator.training.world import spec

A, B = "a" * 64, "b" * 64
LEAST = LessonSettings()


def point(step: int, attempt: int = 1, step_s: float = 0.5) -> training_pb2.MetricPoint:
    return training_pb2.MetricPoint(step=step, attempt=attempt, loss=1 / (step + 1), step_s=step_s)


def training(*nodes: str) -> training_pb2.Job:
    made = training_pb2.Job(id="j", spec=spec(), state=record.RUNNING, phase=record.TRAINING)
    workers = [training_pb2.Worker(rank=rank, node=name) for rank, name in enumerate(nodes)]
    made.attempt.CopyFrom(training_pb2.Attempt(number=1, workers=workers))
    made.plan.steps = 100
    return made


def test_progress_adds_the_workers_up_and_names_the_straggler() -> None:
    job = training("a", "b", "c")
    loads = {
        name: membership_pb2.Load(
            tasks=[
                training_pb2.TaskProgress(
                    job="j", attempt=1, rank=rank, samples_per_s=4 if name == "c" else 10, point=point(20)
                )
            ]
        )
        for rank, name in enumerate(("a", "b", "c"))
    }
    made = progress_of(State(), job, loads, [point(step) for step in range(1, 20)])
    assert (made.step, made.steps, made.samples_per_s, made.eta_s) == (20, 100, 64, 40)
    assert [each.straggler for each in made.workers] == [False, False, True]
    assert made.workers[2].message == "it takes 2.5 times as long as the others for its share"


def test_a_new_attempt_shows_the_last_loss_until_it_has_one() -> None:
    job = training("a")
    job.attempt.number, job.attempt.from_step = 2, 9
    for begun in (training_pb2.MetricPoint(), training_pb2.MetricPoint(step=9, attempt=2)):
        task = training_pb2.TaskProgress(job="j", attempt=2, rank=0, point=begun)
        loads = {"a": membership_pb2.Load(tasks=[task])}
        made = progress_of(State(), job, loads, [point(step) for step in range(1, 10)])
        assert (made.step, made.step_s) == (9, 0.5)
        assert made.loss == pytest.approx(0.1)


def test_loads_of_an_earlier_attempt_do_not_count() -> None:
    task = training_pb2.TaskProgress(job="j", attempt=7, rank=0, samples_per_s=10, point=point(20))
    made = progress_of(State(), training("a"), {"a": membership_pb2.Load(tasks=[task])})
    assert (made.step, made.samples_per_s) == (0, 0)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 30)), max_size=60), st.integers(2, 20))
def test_a_curve_has_each_step_once_and_the_last_attempts_word(given_: list[tuple[int, int]], most: int) -> None:
    found = curve(point(step, attempt) for attempt, step in given_)
    assert [each.step for each in found] == sorted({each.step for each in found})
    assert [each.attempt for each in found] == sorted(each.attempt for each in found)
    few = thinned(found, most)
    assert len(few) <= most
    assert not found or (few[0], few[-1]) == (found[0], found[-1])
    assert len(thinned([point(step) for step in range(1000)])) == MOST_POINTS


def test_what_a_job_teaches() -> None:
    job = training("a", "b")
    job.plan.MergeFrom(training_pb2.JobPlan(strategy=training_pb2.STRATEGY_DDP, situation="s", alone_samples_per_s=100))
    table = training_pb2.StrategyTable()
    job.state = record.FAILED
    assert lesson(job, table, LEAST, lacked=False) is None, "an error of the code"
    lacked = lesson(job, table, LEAST, lacked=True)
    assert lacked is not None
    assert lacked.values[0].value < 0
    job.state = record.SUCCEEDED
    assert lesson(job, table, LEAST, lacked=False) is None, "nothing was measured"
    for speed, step, start in ((150, 199, 0), (150, 250, 51), (401, 250, 0)):
        job.results["samples_per_s"], job.step, job.attempt.from_step = speed, step, start
        assert lesson(job, table, LEAST, lacked=False) is None, "too short since its last loss"
        assert lesson(job, table, LessonSettings(lesson_steps=1, lesson_s=0), lacked=False) is not None
    job.results["samples_per_s"], job.step, job.attempt.from_step = 150, 250, 0
    learned = lesson(job, table, LEAST, lacked=False)
    assert learned is not None
    assert learned.values[0].value == pytest.approx(1.5 / 2**0.5)
    assert lesson(job, table, LessonSettings(lesson_s=60), lacked=False) is None, "asked to go on for longer"
    job.spec.strategy, job.plan.reason = training_pb2.STRATEGY_DDP, "the job names it"
    again = lesson(job, learned, LEAST, lacked=False)
    assert again is not None
    assert (again.values[0].visits, again.jobs) == (2, 2), "an observation as any other"
    job.plan.situation = ""
    assert lesson(job, table, LEAST, lacked=False) is None, "planned by a version that did not say it"


def test_the_next_version() -> None:
    def known(*numbers: str) -> State:
        return State(
            versions={("job", number): registry_pb2.ModelVersion(name="job", version=number) for number in numbers}
        )

    asked = spec()
    assert next_version(known(), asked) == "job:1.0.0"
    assert next_version(known("1.0.0", "1.10.2", "1.9.0"), asked) == "job:1.11.0"
    assert next_version(known("1.10.2"), asked, breaks=True) == "job:2.0.0"
    asked.output.version = "7.0.0"
    assert next_version(known("1.10.2"), asked) == "job:7.0.0"


def test_a_result_says_what_it_was_made_from() -> None:
    job = training("a", "b")
    job.model, job.results["accuracy"] = "job:1.2.0", 0.97
    made = result_version(job, '{"name": "x", "version": "0.0.1", "runtime": "torch"}')
    assert (made.name, made.version, made.runtime) == ("job", "1.2.0", "torch")
    assert made.provenance.source == "training job j"
    assert made.provenance.details["data"] == "digits"
    assert lineage(job)["result.accuracy"] == "0.97"
    with pytest.raises(InvalidInputError, match="packed is no version"):
        result_version(job, "nonsense")


def test_blobs_that_jobs_use() -> None:
    job = training("a")
    job.spec.ClearField("entry")
    job.spec.code.archive = A
    job.checkpoint.files.add(path="0", digest=B, bytes=3)
    assert blobs.used([job]) == {A, B}
    assert blobs.kept([job]) == {A}, "its nodes hold its checkpoint"
    job.phase, job.state = record.NONE, record.PAUSED
    assert blobs.kept([job]) == {A, B}
    after = record.copy(job)
    after.state = record.SUCCEEDED
    assert blobs.gone({"j": job}, {"j": after}) == {B}
    assert blobs.gone({"j": job}, {}) == {A, B}
    assert (blobs.most_bytes([job], A), blobs.most_bytes([job], B)) == (blobs.MOST_CODE_BYTES, 3)


def test_defaults_are_filled_in() -> None:
    made = spec()
    assert (made.batch_size, made.checkpoint.every.seconds, made.checkpoint.keep) == (32, 60, 2)
    assert (made.restarts.failures, made.restarts.HasField("preemptions")) == (3, False)
    assert (made.stall_timeout.seconds, made.HasField("max_duration"), made.output.model) == (600, False, "job")
    assert (made.resources.min_workers, made.resources.max_workers) == (1, 1)


def test_federated_clients_and_workers_follow_from_each_other() -> None:
    federated = training_pb2.STRATEGY_FEDERATED
    asked = training_pb2.JobSpec(name="f", task="classifier", steps=3, strategy=federated)
    asked.data.builtin = "digits"
    asked.federated.clients, asked.federated.clients_per_node = 10, 4
    made = check_job(asked)
    assert (made.resources.min_workers, made.resources.max_workers, made.federated.fraction) == (3, 3, 1.0)
    asked.resources.max_workers = 2
    with pytest.raises(InvalidInputError, match="10 clients have no room on 2 workers of 4"):
        check_job(asked)


def test_a_delta_at_which_nothing_would_be_private_is_refused() -> None:
    asked = training_pb2.JobSpec(name="f", task="classifier", steps=3, strategy=training_pb2.STRATEGY_FEDERATED)
    asked.data.builtin, asked.federated.delta = "digits", 1.0
    with pytest.raises(InvalidInputError, match=r"federated.delta 1.0 is not possible"):
        check_job(asked)


Change = dict[str, object]
BAD: list[tuple[str, Change]] = [
    ("name 'No'", {"name": "No"}),
    ("the job has both epochs and steps", {"epochs": 2}),
    ("task 'magic'", {"task": "magic"}),
    ("data.builtin 'mnist'", {"data": training_pb2.Data(builtin="mnist")}),
    ("data.holdout 0.9", {"data": training_pb2.Data(holdout=0.9)}),
    ("data has builtin and path", {"data": training_pb2.Data(path="/x")}),
    ("data has builtin and shards", {"data": training_pb2.Data(shards=[training_pb2.Shard(name="x.npz")])}),
    ("base_model 'x' is not possible", {"base_model": "x"}),
    (
        "resources.max_workers 1 is below min_workers 2",
        {"resources": training_pb2.Resources(min_workers=2, max_workers=1)},
    ),
    ("gpu_memory_bytes is set without gpus", {"resources": training_pb2.Resources(gpu_memory_bytes=1)}),
    ("resources.cpu_cores nan", {"resources": training_pb2.Resources(cpu_cores=float("nan"))}),
    ("federated is set", {"federated": training_pb2.Federated(clients=2)}),
    ("data.partition is of federated jobs", {"data": training_pb2.Data(partition=training_pb2.Partition(kind="iid"))}),
    ("priority 9999", {"priority": 9999}),
    ("version 'one' is not allowed", {"output": training_pb2.Output(version="one")}),
]


@pytest.mark.parametrize(("message", "changes"), BAD, ids=[message for message, _ in BAD])
def test_what_can_never_be_is_refused_by_name(message: str, changes: Change) -> None:
    asked = training_pb2.JobSpec(name="job", task="classifier", data=training_pb2.Data(builtin="digits"), steps=5)
    asked.MergeFrom(training_pb2.JobSpec(**changes))  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match=message):
        check_job(asked)


@pytest.mark.parametrize("missing", ["task", "data", "steps"])
def test_what_is_needed_is_asked_for(missing: str) -> None:
    asked = training_pb2.JobSpec(name="job", task="classifier", data=training_pb2.Data(builtin="digits"), steps=5)
    asked.ClearField(missing)  # type: ignore[arg-type]
    with pytest.raises(InvalidInputError, match="the job has n"):
        check_job(asked)
