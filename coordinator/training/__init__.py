"""Training jobs: what the leader decides of them, what nodes are told, and what people are shown."""
