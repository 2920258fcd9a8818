"""The command `chexstudy`: one file a group of verbs."""
