"""Plain networks, which know nothing of slicing."""
