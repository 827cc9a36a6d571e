"""Alembic's migrations of the experiments' tables; `coordinator.experiments.migrate` runs them."""
