"""The statistics that rollouts are judged with: pure functions, each with its source. They know no metric."""
