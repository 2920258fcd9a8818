"""How many labels: learning curves, what they forecast, and what a target performance would cost."""
