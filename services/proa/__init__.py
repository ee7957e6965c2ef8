"""proa: coded redundancy for model serving."""

__version__ = "0.1.0"
