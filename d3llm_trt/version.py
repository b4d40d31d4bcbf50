"""The version of the package, which engine directories and caches carry."""

__version__ = "0.1.0"
