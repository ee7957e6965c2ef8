"""Chaos experiments: a workload, faults, a hypothesis; run them, and get a verdict.

The runner knows no place: what stands between it and the system is a `Backend`. One is here, for
`proa up` on this machine (`proa_chaos.local`).
"""
