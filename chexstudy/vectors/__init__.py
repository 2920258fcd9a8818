"""Algorithms on feature matrices: neighbours, k-means, farthest points, facility location, maps."""
