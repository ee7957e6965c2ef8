"""The runner of chaos experiments will live here: workload, faults, hypothesis, verdict.

Nothing is here yet; workers packed with `proa pack --faults` take faults by `proa.api.v1` already.
"""
