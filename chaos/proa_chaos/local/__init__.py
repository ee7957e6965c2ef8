"""Experiments against `proa up` on this machine."""
