"""Erasure codes over queries and predictions: pure maths, numpy in, numpy out.

The one implementation of encoding and decoding. Training (`proa.train`), the encoder and decoder
services and the inline path of the frontend all call it, so that what is served is what was
trained (the published system trained one code and served another).
"""

from __future__ import annotations

from proa.codes.code import Code, make_code
from proa.codes.coefficients import CODERS, K_MAX, R_MAX, coefficients

__all__ = ["CODERS", "K_MAX", "R_MAX", "Code", "coefficients", "make_code"]
