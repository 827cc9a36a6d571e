"""Triton on this machine: how it is started, watched, tested and called."""
