"""Assignments, and what grades them."""
