"""Training from a user's side: job files, what is uploaded, views of jobs, plots, planning on this machine."""
