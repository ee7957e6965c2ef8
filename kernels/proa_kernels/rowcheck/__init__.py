"""The row check, the same for every product with a constant weight: screen, then settle."""

from proa_kernels.rowcheck.memo import Memo
from proa_kernels.rowcheck.product import Product, Tiling
from proa_kernels.rowcheck.screen import squares_of
from proa_kernels.rowcheck.settle import Check, Tamper, check_rows

__all__ = ["Check", "Memo", "Product", "Tamper", "Tiling", "check_rows", "squares_of"]
