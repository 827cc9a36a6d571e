"""The worker's side of a job: joins the others, trains step by step, writes checkpoints, hands the result over."""
