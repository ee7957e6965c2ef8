"""Checked matrix products (ABFT) will live here, one folder per op beside its reference.

Nothing is here yet.
"""
