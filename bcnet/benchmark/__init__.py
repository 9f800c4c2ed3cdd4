"""Ground truth, ranking statistics and score files."""
