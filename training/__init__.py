"""Training and what goes before it: what a model is, what it needs, how its work is shared out."""
