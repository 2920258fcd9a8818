"""Curate anybody's embeddings from files, without a study."""
