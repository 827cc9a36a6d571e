"""What runs inside Triton, one template a runtime, and the push side that describes a model to the mesh."""
