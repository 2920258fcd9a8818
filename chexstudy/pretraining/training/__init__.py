"""Training one arm from its first step to its weights."""
