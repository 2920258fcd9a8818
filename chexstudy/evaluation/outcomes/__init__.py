"""Outcomes from images, such as who dies when."""
