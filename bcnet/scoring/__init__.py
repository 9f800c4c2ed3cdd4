"""Scores of width vectors: metrics, evaluation, the cache, the additive model, one walk for many."""
