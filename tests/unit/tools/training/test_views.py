from __future__ import annotations

import io
import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import RenderableType

from aimesh.training.v1 import training_pb2
from tests.unit.tools.training.jobs import going, made, points
from tools.cli import output
from tools.training.export import results_json, to_csv
from tools.training.plan_view import learned, learned_json, planned, planned_json
from tools.training.planning import Planned
from tools.training.plot import panels, plot
from tools.training.status import loss_of, status_json
from tools.training.view import listed, shown, span
from training.plan.explain import explain

KEYS = ["state", "step", "steps", "loss", "workers", "model", "error"]


def text_of(what: RenderableType) -> str:
    file = io.StringIO()
    output._console(file).print(what)
    return file.getvalue()


def test_the_json_form_is_the_documented_one() -> None:
    found = status_json(made(), going())
    assert list(found)[:7] == KEYS
    assert [found[key] for key in KEYS if key != "workers"] == ["RUNNING", 100, 400, 0.5, "", ""]
    assert [list(worker)[:3] for worker in found["workers"]] == [["node", "rank", "pid"]] * 2
    assert found["workers"][1]["pid"] == 4001
    assert (found["job"], found["strategy"]) == ("digits-abc123", "ddp")


@given(st.floats(), st.sampled_from(sorted(set(training_pb2.JobState.values()))), st.booleans())
def test_any_job_is_json(value: float, state: training_pb2.JobState.ValueType, bare: bool) -> None:
    job = made(state, results={"loss": value})
    progress = training_pb2.JobProgress(loss=value, step_s=value) if bare else going(3, value)
    found = json.loads(json.dumps(status_json(job, progress), allow_nan=False))
    assert found["loss"] == (value if math.isfinite(value) else None)
    assert text_of(shown(job, progress))


def test_what_is_not_known_is_none() -> None:
    found = status_json(training_pb2.Job(id="n", state=training_pb2.JOB_STATE_PENDING), training_pb2.JobProgress())
    assert (found["loss"], found["workers"], found["eta_s"], found["checkpoint_step"]) == (None, [], None, None)
    started = going(0)
    started.workers[0].pid = 0
    assert status_json(made(), started)["workers"][0]["pid"] is None
    assert loss_of(made(), started) is None
    assert loss_of(made(results={"loss": 0.3, "train_loss": 0.2}), training_pb2.JobProgress()) == 0.2


def test_a_job_under_way() -> None:
    text = text_of(shown(made(failures=1, lost_steps=12, checkpoint={"step": 90}), going()))
    for said in ("RUNNING", "100/400", "25%", "1 min 15 s to go", "ddp", "loss 0.5", "20 ms a step", "1234 samples/s"):
        assert said in text
    assert "attempt 2  1 lost, 12 steps made twice  checkpoint at step 90" in text
    assert "node-2  4001  running   100" in text
    assert "slow" in text.splitlines()[-1]
    assert "300.0 MiB" in text
    assert "⠉" in text or "⠤" in text


def test_a_job_that_has_ended() -> None:
    job = made(training_pb2.JOB_STATE_SUCCEEDED, model="digits:1.0.0", results={"loss": 0.1, "accuracy": 0.97, "z": 1})
    text = text_of(shown(job, training_pb2.JobProgress(step=400, steps=400)))
    assert "100%" in text
    assert "aimesh deploy digits:1.0.0" in text
    assert text.index("loss") < text.index("accuracy") < text.index("z  ")
    packing = made(model="digits:1.0.0")
    assert status_json(packing, going())["model"] == ""
    assert "aimesh deploy" not in text_of(shown(packing, going()))
    assert "not planned yet" in text_of(shown(made(plan=None), training_pb2.JobProgress()))


def test_what_others_wrote_is_shown_and_not_obeyed() -> None:
    job = made(training_pb2.JOB_STATE_FAILED, error="[/red] \x1b[2J rank 1 on node-2: no")
    progress = going()
    progress.workers[0].message = "[bold]\x07"
    for text in (text_of(shown(job, progress)), text_of(listed([training_pb2.GetJobResponse(job=job)]))):
        assert "\x1b" not in text
        assert "[/red]" in text


def test_jobs_in_a_list() -> None:
    text = text_of(listed([training_pb2.GetJobResponse(job=made(reason="waits"), progress=going())]))
    assert text.splitlines()[0].split() == ["JOB", "STATE", "STRATEGY", "STEP", "LOSS", "WORKERS", "MODEL", "OR", "WHY"]
    assert text.splitlines()[1].split() == ["digits-abc123", "RUNNING", "ddp", "100/400", "0.5", "2", "waits"]


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.0123, "12.3 ms"), (1.5, "1.5 s"), (75, "1 min 15 s"), (7500, "2 h 5 min")]
)
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said


def test_points_as_csv_and_json() -> None:
    measured = [*points(2), training_pb2.MetricPoint(step=3, loss=math.nan, values={"epsilon": 2.5})]
    lines = to_csv(measured).splitlines()
    assert lines[0] == "step,attempt,at,loss,step_s,accuracy,epsilon,learning_rate"
    assert lines[1] == "1,1,,2.0,0.02,0.5,,0.1"
    assert lines[3] == "3,0,,nan,0.0,,2.5,"
    found = json.loads(json.dumps(results_json(made(results={"accuracy": 1.0}), measured), allow_nan=False))
    assert (found["results"], found["points"][2]["loss"], found["points"][2]["epsilon"]) == (
        {"accuracy": 1.0},
        None,
        2.5,
    )


def test_a_plot_is_a_picture(tmp_path: Path) -> None:
    measured = [*points(80), training_pb2.MetricPoint(step=81, loss=math.inf)]
    assert panels(measured) == ["loss", "accuracy", "step_s"]
    plot(made(model="a$b:1.0.0"), measured, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def plan_of(name: str, workers: int) -> training_pb2.JobPlan:
    strategy = training_pb2.Strategy.Value(name)
    plan = training_pb2.JobPlan(strategy=strategy, reason="because", samples=1000, steps=100, workers=workers)
    plan.model.size_class, plan.model.family = "small", "mlp"
    for layer in ("first", "middle", "last"):
        plan.model.layers.add(name=layer, flops=10, parameters=5)
    plan.options.add(strategy=strategy, step_s=0.01, workers=workers, value=1.3, predicted=1.2, visits=4, reason="why")
    plan.options.add(strategy=training_pb2.STRATEGY_TENSOR, reason="no layers that allow it")
    plan.defaults.memory_bytes, plan.computed.memory_bytes, plan.memory_bytes = 4 << 30, 1 << 30, 1 << 30
    return plan


def plans(strategy: str, **spec: object) -> Planned:
    asked = training_pb2.JobSpec(name="n", batch_size=10, **spec)  # type: ignore[arg-type]
    plan = plan_of(strategy, 2)
    return Planned(asked, plan, explain(asked, plan))


def test_a_plan_shows_every_strategy_both_needs_and_each_share() -> None:
    text = text_of(planned(plans("STRATEGY_DDP")))
    for said in (
        "because",
        "4.0 GiB",
        "1.0 GiB",
        "cannot",
        "no layers that allow it",
        "1.30",
        "10 ms",
        "0 to 4",
        "5 to 9",
    ):
        assert said in text
    found = planned_json(plans("STRATEGY_DDP"))
    assert [option["strategy"] for option in found["options"]] == ["ddp", "tensor"]
    assert [share["batch"] for share in found["shares"]] == [[0, 5], [5, 10]]


def test_how_a_job_goes_on_with_more_nodes_is_shown() -> None:
    found = plans("STRATEGY_DDP")
    assert "goes on as" not in text_of(planned(found))
    found.plan.wider.add(strategy=training_pb2.STRATEGY_TENSOR, from_workers=4, workers=8)
    assert "It goes on as tensor once 4 workers have room." in text_of(planned(found))
    wider = [{"strategy": "tensor", "from_workers": 4, "workers": 8}]
    assert planned_json(found)["wider"] == wider
    job = made(plan=found.plan)
    assert "goes on as tensor once 4 workers have room" in text_of(shown(job, going()))
    assert status_json(job, going())["wider"] == wider
    assert status_json(made(), going())["wider"] == []


def test_shares_of_a_pipeline_are_layers_and_of_a_federated_job_clients() -> None:
    assert "middle" in text_of(planned(plans("STRATEGY_PIPELINE")))
    federated = plans("STRATEGY_FEDERATED", federated={"clients": 8, "clients_per_node": 4})
    text = text_of(planned(federated))
    assert "0 to 3" in text
    assert "4 to 7" in text
    assert "100 rounds" in text


def test_what_was_learned() -> None:
    empty = training_pb2.StrategyTable()
    assert "the cost model decides" in text_of(learned(empty))
    table = training_pb2.StrategyTable(jobs=7)
    table.values.add(situation="medium/small/2/fast", strategy=training_pb2.STRATEGY_SINGLE, value=1.0, visits=3)
    table.values.add(
        situation="medium/small/2/fast", strategy=training_pb2.STRATEGY_DDP, value=1.4, visits=4, predicted=1.2
    )
    lines = text_of(learned(table)).splitlines()
    assert "7 finished jobs" in lines[0]
    assert lines[-2].split() == ["medium", "small", "2", "fast", "ddp", "1.4", "1.2", "4"]
    assert lines[-1].split() == ["single", "1", "3"]
    assert learned_json(table)["values"][1]["strategy"] == "ddp"
