"""The version of the distribution, for modules that `tureen` itself imports."""

__version__ = "0.1.0"
