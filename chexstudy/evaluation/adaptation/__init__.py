"""Heads on frozen features: linear, nearest neighbours, GLoRI; their training, losses and attention."""
