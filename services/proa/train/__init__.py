"""Training and evaluation of deployed and parity models. The only code used is `proa.codes`."""

from __future__ import annotations

from proa.train.digits import HeldOut, held_out, train_digits
from proa.train.own import (
    ParityProgram,
    evaluate_spec,
    train_own_model,
    train_parity_program,
)
from proa.train.program import export, predictor, reference_outputs
from proa.train.quality import Quality, evaluate, overall_accuracy, recoverable

__all__ = [
    "HeldOut",
    "ParityProgram",
    "Quality",
    "evaluate",
    "evaluate_spec",
    "export",
    "held_out",
    "overall_accuracy",
    "predictor",
    "recoverable",
    "reference_outputs",
    "train_digits",
    "train_own_model",
    "train_parity_program",
]
