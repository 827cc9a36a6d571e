"""From samples to a table: medians over the rounds, and ratios to a reference row of the same round."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from tools.bench.load import Sample, StreamSample

DIRECT, STATIC = "direct", "static envoy"


def unary_rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """One row a path and concurrency, in the order of measuring."""
    kinds = dict.fromkeys((sample.concurrency, sample.path) for sample in samples)
    return [_unary_row(samples, path, concurrency) for concurrency, path in kinds]


def _unary_row(samples: Sequence[Sample], path: str, concurrency: int) -> dict[str, Any]:
    rounds = _rounds(samples, path, concurrency)
    proxied = path not in (DIRECT, "xds")
    row: dict[str, Any] = {
        "path": path,
        "concurrency": concurrency,
        "requests_per_s": _median(rounds, lambda s: s.rate),
        "p50_ms": _median(rounds, lambda s: percentile(s.latencies_ms, 50)),
        "p99_ms": _median(rounds, lambda s: percentile(s.latencies_ms, 99)),
        "cpu_us_per_request": {name: _median(rounds, lambda s, n=name: s.cpu_us[n]) for name in rounds[0].cpu_us},  # type: ignore[misc]
        "to_direct": _ratio(rounds, _rounds(samples, DIRECT, concurrency), lambda s: s.rate),
        "p50_to_direct": _ratio(
            rounds, _rounds(samples, DIRECT, concurrency), lambda s: percentile(s.latencies_ms, 50)
        ),
    }
    if proxied:
        static = _rounds(samples, STATIC, concurrency)
        row["to_static_envoy"] = _ratio(rounds, static, lambda s: s.rate)
        row["proxy_cpu_to_static_envoy"] = _ratio(rounds, static, proxy_cpu_us)
    return row


def proxy_cpu_us(sample: Sample) -> float:
    """CPU a request of the proxy that this path goes through."""
    return sample.cpu_us["static envoy" if sample.path == STATIC else "gateway"]


def stream_rows(samples: Sequence[StreamSample]) -> list[dict[str, Any]]:
    """One row a path and number of streams."""
    kinds = dict.fromkeys((sample.streams, sample.path) for sample in samples)
    rows = []
    for streams, path in kinds:
        rounds = [s for s in samples if (s.streams, s.path) == (streams, path)]
        direct = [s for s in samples if (s.streams, s.path) == (streams, DIRECT)]
        rows.append(
            {
                "path": path,
                "streams": streams,
                "tokens_per_s": _median(rounds, lambda s: s.rate),
                "first_token_ms": _median(rounds, lambda s: s.first_token_ms),
                "to_direct": _ratio(rounds, direct, lambda s: s.rate),
            }
        )
    return rows


def tables(report: Mapping[str, Any]) -> list[Table]:
    """The report as tables for a terminal."""
    return [_unary_table(report["unary"]), _stream_table(report["streaming"]), _facts_table(report)]


def _unary_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Unary: addone, 16 floats", title_justify="left")
    for name in ("callers", "path", "req/s", "p50 ms", "p99 ms", "÷ direct", "÷ static Envoy", "proxy CPU ÷ static"):
        table.add_column(name, justify="left" if name == "path" else "right")
    table.add_column("CPU µs a request")
    for row in rows:
        cpu = ", ".join(f"{name} {spent:.0f}" for name, spent in row["cpu_us_per_request"].items() if spent >= 0.5)
        table.add_row(
            str(row["concurrency"]),
            row["path"],
            f"{row['requests_per_s']:.0f}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            _shown(row["to_direct"]),
            _shown(row.get("to_static_envoy")),
            _shown(row.get("proxy_cpu_to_static_envoy")),
            cpu,
        )
    return table


def _stream_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title="Streaming: SmolLM2-135M, greedy", title_justify="left")
    for name in ("streams", "path", "tokens/s", "first token ms", "÷ direct"):
        table.add_column(name, justify="left" if name == "path" else "right")
    for row in rows:
        rate, first = f"{row['tokens_per_s']:.1f}", f"{row['first_token_ms']:.0f}"
        table.add_row(str(row["streams"]), row["path"], rate, first, _shown(row["to_direct"]))
    return table


def _facts_table(report: Mapping[str, Any]) -> Table:
    table = Table(title="Start and memory", title_justify="left")
    table.add_column("what")
    table.add_column("figure", justify="right")
    for what, seconds in report["seconds"].items():
        table.add_row(what, f"{seconds:.1f} s")
    for name, size in report["resident_bytes"].items():
        table.add_row(f"resident memory, {name}", f"{size / 2**20:.0f} MiB")
    for name, share in report["idle_cpu"].items():
        table.add_row(f"CPU while idle, {name}", f"{share * 100:.1f} % of a core")
    return table


def percentile(values: Sequence[float], rank: float) -> float:
    """The rank-th percentile, linearly between samples."""
    return float(np.percentile(values, rank))


def _rounds(samples: Sequence[Sample], path: str, concurrency: int) -> list[Sample]:
    return [s for s in samples if (s.path, s.concurrency) == (path, concurrency)]


def _median(rounds: Sequence[Any], figure: Callable[[Any], float]) -> float:
    return statistics.median(figure(sample) for sample in rounds)


def _ratio(rounds: Sequence[Any], reference: Sequence[Any], figure: Callable[[Any], float]) -> dict[str, float]:
    """Ratio to the reference in the same round: median, least, most."""
    ratios = [figure(ours) / figure(theirs) for ours, theirs in zip(rounds, reference, strict=True)]
    return {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}


def _shown(ratio: Mapping[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['least']:.2f}-{ratio['most']:.2f})" if ratio else ""
