"""Train chest X-ray foundation models on less data and less compute: a reproducible study."""

__version__ = "0.1.0"
