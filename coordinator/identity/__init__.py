"""Who may do what: API keys, join tokens, certificates of joining machines, and the log of every change."""
