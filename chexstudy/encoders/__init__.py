"""Image and text encoders behind one contract, and the embeddings they give."""
