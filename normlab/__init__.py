"""The library under The Batch Normalization Book."""

__version__ = "0.1.0"
