"""Time limits of tests: for what hangs, not for what is slow because the machine has other work."""

import os


def patience(seconds: float) -> float:
    """A time limit, longer by as much as processes wait for the processor."""
    load = max(os.getloadavg()[:2]) if hasattr(os, "getloadavg") else 0.0
    return seconds * max(1.0, 2 * load / (os.cpu_count() or 1))
