"""The curator that selects while a model trains: published and budgeted, prototypes, bands, samplers."""
