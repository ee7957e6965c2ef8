"""Experiments on the embedding-parity store."""
