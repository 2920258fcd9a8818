"""Arms trained at a budget: the engine knows nothing of notebooks."""
