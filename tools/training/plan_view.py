"""How plans and what was learned look on a terminal and as JSON. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from aimesh.training.v1 import training_pb2
from tools.cli.output import human_bytes
from tools.cli.plain import plain
from tools.training.planning import Planned
from tools.training.status import said_wider, strategy_word, wider_of
from tools.training.view import figure, span
from training.plan.explain import Share

_SHARES_SHOWN = 64
_LAYERS_SHOWN = 6


def planned(found: Planned) -> RenderableType:
    """What `aimesh train plan` prints."""
    plan = found.plan
    others = [
        part
        for strategy, shares in found.possible.items()
        for part in (Text(), Text.assemble("With ", (strategy_word(strategy), "bold"), ":"), _shares(shares))
    ]
    return Group(
        Text.assemble((f"{found.spec.name}: ", "bold"), (strategy_word(plan.strategy), "bold green")),
        Text(plan.reason),
        *([Text(f"It goes on as {said_wider(plan)}.")] if plan.wider else []),
        Text(),
        _model(plan),
        Text(),
        _needs(plan),
        Text(),
        _options(plan),
        _basis(plan),
        Text(),
        _shares(found.shares),
        *others,
    )


def planned_json(found: Planned) -> dict[str, Any]:
    """The plan as plain values, strategies by their short names, and each worker's share."""
    made = plain(found.plan)
    made["strategy"] = strategy_word(found.plan.strategy)
    for option, held in zip(made["options"], found.plan.options, strict=True):
        option["strategy"] = strategy_word(held.strategy)
    made["wider"] = wider_of(found.plan)
    made["shares"] = _plain_shares(found.shares)
    if found.possible:
        made["possible"] = {strategy_word(strategy): _plain_shares(each) for strategy, each in found.possible.items()}
    return {"name": found.spec.name, **made}


def _plain_shares(shares: Sequence[Share]) -> list[dict[str, Any]]:
    return [
        {
            "rank": share.rank,
            "batch": list(share.batch),
            "samples": share.samples,
            "layers": list(share.layers),
            "clients": list(share.clients) if share.clients else None,
        }
        for share in shares
    ]


def learned(table: training_pb2.StrategyTable) -> RenderableType:
    """What `aimesh train strategy explain` prints."""
    epsilon = table.epsilon if table.HasField("epsilon") else 0.1
    jobs = "1 finished job" if table.jobs == 1 else f"{table.jobs} finished jobs"
    tries = f"one choice in {1 / epsilon:.0f} tries something else" if epsilon else "nothing is tried"
    head = Text(f"Learned from {jobs}; {tries}.")
    if not table.values:
        return Group(head, Text("Nothing is known yet: the cost model decides.", style="dim"))
    rows = Table(box=None, pad_edge=False)
    for title in ("MODEL", "DATA", "NODES", "NETWORK", "STRATEGY", "WORTH", "COST MODEL SAID", "JOBS"):
        rows.add_column(title, justify="right" if title in ("WORTH", "COST MODEL SAID", "JOBS") else "left")
    last = ""
    for value in sorted(table.values, key=lambda one: (one.situation, -one.value)):
        parts = value.situation.split("/") if value.situation != last else [""] * 4
        parts = [*parts, "", "", "", ""][:4]
        best = value.situation != last
        said = figure(value.predicted) if value.predicted else ""
        name = Text(strategy_word(value.strategy), style="green" if best else "")
        rows.add_row(*parts, name, figure(value.value), said, str(value.visits))
        last = value.situation
    return Group(head, Text("Worth: speed-up by the square root of workers; 1 is one worker alone.", "dim"), rows)


def learned_json(table: training_pb2.StrategyTable) -> dict[str, Any]:
    """The table as plain values, strategies by their short names."""
    made = plain(table)
    for value, held in zip(made["values"], table.values, strict=True):
        value["strategy"] = strategy_word(held.strategy)
    return made


def _model(plan: training_pb2.JobPlan) -> RenderableType:
    model = plan.model
    kept = f", {plan.holdout} held back" if plan.holdout else ""
    known = f"{human_bytes(model.activation_bytes)} of activations"
    activations = known if model.activation_bytes else "activations not known"
    rows = [
        ("model", f"{model.size_class}, {model.family}: {model.parameters:,} parameters in {len(model.layers)} parts"),
        ("a sample", f"{figure(model.flops)} operations forward, {activations}"),
        ("data", f"{plan.samples:,} samples{kept}"),
        ("length", f"{plan.steps:,} {'rounds' if plan.strategy == training_pb2.STRATEGY_FEDERATED else 'steps'}"),
        ("known by", model.source),
    ]
    return _grid(rows)


def _needs(plan: training_pb2.JobPlan) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    for title in ("A WORKER NEEDS", "CORES", "MEMORY", "GPU MEMORY", "FROM"):
        table.add_column(title)
    table.add_row("by default", *_need(plan.defaults))
    table.add_row("computed", *_need(plan.computed))
    gpu = human_bytes(plan.gpu_memory_bytes) if plan.gpu_memory_bytes else ""
    table.add_row(Text("counts", "bold"), "", human_bytes(plan.memory_bytes), gpu, "the job file, else computed")
    return table


def _need(need: training_pb2.Needs) -> list[str]:
    sizes = [human_bytes(size) if size else "" for size in (need.memory_bytes, need.gpu_memory_bytes)]
    return [f"{need.cpu_cores:g}" if need.cpu_cores else "", *sizes, need.source]


def _options(plan: training_pb2.JobPlan) -> RenderableType:
    table = Table(box=None, pad_edge=False)
    right = ("WORKERS", "A STEP", "WORTH", "COST MODEL", "JOBS", "MEMORY")
    for title in ("STRATEGY", *right, "WHY"):
        table.add_column(title, justify="right" if title in right else "left", overflow="fold")
    for option in plan.options:
        chosen = option.strategy == plan.strategy
        style = "bold green" if chosen else "" if option.step_s else "dim"
        table.add_row(
            Text(strategy_word(option.strategy), style=style),
            str(option.workers) if option.step_s else "",
            span(option.step_s) if option.step_s else "cannot",
            f"{option.value:.2f}" if option.step_s else "",
            f"{option.predicted:.2f}" if option.step_s else "",
            str(option.visits or ""),
            human_bytes(option.memory_bytes) if option.step_s else "",
            option.reason,
        )
    return table


def _basis(plan: training_pb2.JobPlan) -> Text:
    basis = plan.basis
    return Text(
        f"By {figure(basis.flops_per_s)} operations/s of one worker, {span(basis.overhead_s)} a step besides, "
        f"{human_bytes(basis.bandwidth)}/s and {span(basis.latency_s)} a round trip between {basis.nodes} nodes: "
        f"{basis.source}",
        style="dim",
    )


def _shares(shares: Sequence[Share]) -> RenderableType:
    if not shares:
        return Text("No worker has anything to do.", style="dim")
    clients, layers = any(one.clients for one in shares), any(one.layers for one in shares)
    table = Table(box=None, pad_edge=False)
    for title in (
        "RANK",
        "OF EACH BATCH",
        "SAMPLES AN EPOCH",
        *(["CLIENTS"] if clients else []),
        *(["LAYERS"] if layers else []),
    ):
        table.add_column(title)
    for share in shares[:_SHARES_SHOWN]:
        table.add_row(
            str(share.rank),
            f"{share.batch[0]} to {share.batch[1] - 1}" if share.batch[1] > share.batch[0] else "none",
            f"{share.samples:,}" if share.samples else "its own",
            *([_range(share.clients)] if clients else []),
            *([_layers(share.layers)] if layers else []),
        )
    if len(shares) > _SHARES_SHOWN:
        table.add_row("…", f"and {len(shares) - _SHARES_SHOWN} more")
    return table


def _range(clients: tuple[int, int] | None) -> str:
    if clients is None or clients[1] <= clients[0]:
        return "none"
    return f"{clients[0]} to {clients[1] - 1}" if clients[1] - clients[0] > 1 else str(clients[0])


def _layers(layers: Sequence[str]) -> str:
    if len(layers) <= _LAYERS_SHOWN:
        return ", ".join(layers)
    return f"{layers[0]} to {layers[-1]} ({len(layers)})"


def _grid(rows: Sequence[tuple[str, str]]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, value in rows:
        table.add_row(Text(name, "dim"), value)
    return table
