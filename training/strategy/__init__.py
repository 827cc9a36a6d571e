"""Which strategy a job takes: a cost model, a rule on it, and a chooser that learns from finished jobs. No torch."""
