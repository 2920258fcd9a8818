"""The models that are pretrained, and how texts and pairs reach them."""
