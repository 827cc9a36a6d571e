"""The agent of one machine: reports what it has, supervises Triton, fetches, loads and tests the models it is given."""
