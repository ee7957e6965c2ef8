"""ISA-L, if this machine has it: GF(2^8) products by vector instructions.

Intel's library (Debian: libisal2) multiplies in the same field, polynomial 0x11D, by two tables of
16 products for each factor. Called through ctypes; nothing needs it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

NAME = "libisal.so.2"
TABLE_BYTES = 32  # of one factor

Bytes = NDArray[np.uint8]


class Isal:
    """`library`: a loaded one. Errors: AttributeError where it has not these functions."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._encode = library.ec_encode_data
        self._encode.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 3
        self._encode.restype = None
        begin = library.gf_vect_mul_init
        begin.argtypes, begin.restype = [ctypes.c_ubyte, ctypes.c_void_p], None
        self._tables = [ctypes.create_string_buffer(TABLE_BYTES) for _ in range(256)]
        for factor, table in enumerate(self._tables):
            begin(factor, table)

    def scaled(self, factor: int, data: Bytes) -> Bytes:
        """factor times every byte of `data`, of any shape and size: a code of one block."""
        data = np.ascontiguousarray(data)
        found = np.empty(data.shape, np.uint8)
        source, target = (ctypes.c_void_p(one.ctypes.data) for one in (data, found))
        self._encode(
            data.size, 1, 1, self._tables[factor], ctypes.byref(source), ctypes.byref(target)
        )
        return found


def load(open_library: Callable[[str], ctypes.CDLL] = ctypes.CDLL) -> Isal | None:
    """None: it is not here, or lacks what we call."""
    try:
        return Isal(open_library(NAME))
    except (OSError, AttributeError):
        return None
