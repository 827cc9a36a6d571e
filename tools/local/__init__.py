"""A whole mesh on one machine: where everything lies, starting it, keeping it up, ending it without a trace."""
