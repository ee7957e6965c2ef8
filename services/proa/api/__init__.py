"""Contracts of proa, generated from protos/ (the packages below hold no hand-written code)."""
