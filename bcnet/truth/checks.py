"""What numbers in ground-truth and score files must be."""

from math import isfinite
from typing import Any


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; ``True`` is none, nor is what takes more than 64 bits."""
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value) and abs(value) < 2**63


def is_accuracy(value: Any) -> bool:
    """Whether a value is a number from 0 to 100."""
    return is_number(value) and 0 <= value <= 100


def is_cost(value: Any) -> bool:
    """Whether a value is a positive whole number."""
    return is_number(value) and 0 < value == int(value)
