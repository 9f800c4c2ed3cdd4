"""Latency as a cost: how long every layer of a model takes at every pair of widths, measured where it will run."""
