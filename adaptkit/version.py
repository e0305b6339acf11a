"""The version of adaptkit."""

__version__ = "0.1.0"
