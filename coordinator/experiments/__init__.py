"""Experiments: two versions are asked the same, compared and judged; what is bad is quarantined and remembered."""
