"""What the registry decides: which versions may follow which, what aliases stand for, which nodes can run what."""
