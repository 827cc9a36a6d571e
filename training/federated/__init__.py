"""Federated training: rounds over data that never leaves its node."""
