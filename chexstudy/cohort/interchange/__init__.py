"""A cohort in the formats of others, and back: Hugging Face data sets and WebDataset shards."""
