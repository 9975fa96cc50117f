"""The house's own tools: what the Makefile calls."""
