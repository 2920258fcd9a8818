"""Uncertainty on plain arrays: ranking metrics, bootstrap, proportions, permutation, multiple testing."""
