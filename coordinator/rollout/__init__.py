"""Rollouts: plans, steps, what is measured, how it is judged."""
