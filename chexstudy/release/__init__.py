"""A trained arm as a model others can load, with its model card."""
