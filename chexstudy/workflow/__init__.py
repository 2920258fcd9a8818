"""Notebooks as steps of a study: parameters, profiles, locks, the runner."""
