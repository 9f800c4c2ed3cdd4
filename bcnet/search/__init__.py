"""Scoring and searching width vectors."""
