"""Strategies, the training loop and its checkpoints."""
