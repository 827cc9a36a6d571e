"""Readers of model files, one a format. None runs, loads or unpickles anything; all reads are bounded."""
