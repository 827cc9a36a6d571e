"""Who does what: shares of a batch, ranges of data, layers of stages, tensors, clients. Pure functions, no torch."""
