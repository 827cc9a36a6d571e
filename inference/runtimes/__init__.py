"""One directory a runtime, each with the model.py that Triton runs. The agent copies it; nothing imports it."""
