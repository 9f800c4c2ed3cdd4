"""Ground truth: its files, building it, and holding scores against it."""
