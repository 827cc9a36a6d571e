"""Training on a node: what workers need is brought, they are started, watched, limited, stopped, and reported."""
