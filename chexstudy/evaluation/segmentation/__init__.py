"""Structures outlined from frozen features, and how well."""
