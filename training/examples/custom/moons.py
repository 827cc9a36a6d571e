"""Two half circles that reach into each other. A second file, to show that the whole folder is the import path."""

from __future__ import annotations

import numpy as np


def moons(generator, samples, noise):
    """x [samples, 2] FP32 and y [samples] FP32, 0 or 1."""
    y = np.arange(samples) % 2
    angle = generator.uniform(0, np.pi, samples)
    x = np.stack([np.where(y, 1 - np.cos(angle), np.cos(angle)), np.where(y, 0.5 - np.sin(angle), np.sin(angle))], 1)
    return (x + generator.normal(0, noise, x.shape)).astype(np.float32), y.astype(np.float32)
