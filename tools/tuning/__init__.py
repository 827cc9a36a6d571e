"""Search for hyperparameters: each trial is a job of the mesh."""
