"""Throughput, latency and cost of every path to a model, measured side by side in one interleaved run."""
