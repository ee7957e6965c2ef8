"""The sizing model (facts ecrm F) fed with what was measured: recovery at sizes nobody ran here."""

from __future__ import annotations

from math import sqrt
from typing import Any

MTBF_S = 20 * 3600.0  # CPR, MLSys'21: production jobs fail every 14 to 30 h
SIZES_BYTES = {"44gb": 44e9, "1tb": 1e12}
NODES = 16
CORES = 8  # of a node, that decode side by side
NET_BYTES_S = 25e9 / 8
DISK_BYTES_S = 1.25e9  # of the storage that checkpoints go to, all nodes together
RESTART_S = 5.0  # until a new owner has started; measured: `restart_s`


def young_s(save_s: float) -> float:
    """Young's best interval between checkpoints that take so long."""
    return sqrt(2 * save_s * MTBF_S)


def extrapolated(row: dict[str, Any]) -> dict[str, Any]:
    """`model_*`: recovery of one of 16 nodes, and restart from a checkpoint, at 44 GB and 1 TB.

    Time to rebuild: as many rows a second and process as were rebuilt here, on 8 processes of each
    node, but no faster than the network (k blocks in for one out, declustered over the others).
    """
    width = 4 * (64 + 1)
    per_process = row["rows_rebuilt"] / max(row["rebuild_s"], 0.1)  # seen every 0.1 s
    found = {}
    for name, size in SIZES_BYTES.items():
        rows = size / width * (1 + row["r"] / row["k"]) / NODES
        cpu_s = rows / (per_process * CORES)
        net_s = row["k"] * rows * width / ((NODES - 1) * NET_BYTES_S)
        save_s = size / DISK_BYTES_S
        found[f"model_recovery_s_{name}"] = round(RESTART_S + max(cpu_s, net_s), 1)
        found[f"model_reload_s_{name}"] = round(save_s, 1)
        found[f"model_checkpoint_recovery_s_{name}"] = round(save_s + young_s(save_s) / 2, 1)
    return found
