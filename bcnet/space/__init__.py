"""Groups of tied channels, width vectors and their costs."""
