"""Experiments in a namespace of a cluster, run by a pod of it: `proa-service chaos`."""
