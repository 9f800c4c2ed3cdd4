"""The weight-sharing network and what is taken out of it."""
