"""Checkpoints of a job: each worker writes its part, any number of workers goes on from all parts."""
