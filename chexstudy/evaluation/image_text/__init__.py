"""Tasks of an image-text model without further training: zero-shot classification and retrieval."""
