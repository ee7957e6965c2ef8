"""Initial values of rows: from (seed, table, id) alone, so nobody has to keep or send them.

A counter-based generator (SplitMix64: Steele, Lea, Flood 2014) in integers, and then only IEEE
additions, multiplications, divisions and square roots: the same bits on every machine, which log or
cos of a math library would not promise.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proa.errors import InvalidRequest

KINDS = ("uniform", "normal", "zeros", "constant")
_MASK = (1 << 64) - 1
_GAMMA = 0x9E3779B97F4A7C15

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Initialiser:
    """uniform: low to high; normal: mean and std; constant: value; zeros. Errors: InvalidRequest,
    which names the field."""

    kind: str = "uniform"
    seed: int = 0
    low: float = -0.05
    high: float = 0.05
    mean: float = 0.0
    std: float = 0.05
    value: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidRequest(f"init.kind = {self.kind!r} is none of {', '.join(KINDS)}")
        if not 0 <= self.seed < 1 << 63:
            raise InvalidRequest(f"init.seed = {self.seed} is not 0 to 2^63 - 1")
        for name in ("low", "high", "mean", "std", "value"):
            if not abs(getattr(self, name)) < 1e30:
                raise InvalidRequest(f"init.{name} = {getattr(self, name)} is not finite")
        if self.high < self.low:
            raise InvalidRequest(f"init.high = {self.high} is below init.low = {self.low}")
        if self.std < 0:
            raise InvalidRequest(f"init.std = {self.std} is negative")

    def weights(self, table: str, ids: Ids, dim: int) -> Floats:
        """float32 [ids, dim]."""
        shape = (len(ids), dim)
        if self.kind in ("zeros", "constant"):
            return np.full(shape, self.value if self.kind == "constant" else 0.0, np.float32)
        bits = random_bits(self.seed, table, ids, dim)
        if self.kind == "uniform":
            unit = (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)
            low = np.float32(self.low)
            return unit * (np.float32(self.high) - low) + low
        unit64 = ((bits >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
        return (normal_quantile(unit64) * self.std + self.mean).astype(np.float32)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def random_bits(seed: int, table: str, ids: Ids, dim: int) -> NDArray[np.uint64]:
    """uint64 [ids, dim]: bits of column j of row `id`, whatever else is asked for with it."""
    name = int.from_bytes(hashlib.blake2b(table.encode(), digest_size=8).digest(), "little")
    key = np.array([(name + seed * _GAMMA) & _MASK], np.uint64)
    rows = _mix(_mix(key) + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GAMMA))
    columns = np.arange(1, dim + 1, dtype=np.uint64) * np.uint64(_GAMMA)
    return _mix(rows[:, None] + columns)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# --- the normal distribution

# Wichura's PPND16 (Applied Statistics 37, AS 241): numerators and denominators, lowest power first.
_CENTRE = (
    (3.3871328727963666080, 133.14166789178437745, 1971.5909503065514427, 13731.693765509461125,
     45921.953931549871457, 67265.770927008700853, 33430.575583588128105, 2509.0809287301226727),
    (1.0, 42.313330701600911252, 687.18700749205790830, 5394.1960214247511077,
     21213.794301586595867, 39307.895800092710610, 28729.085735721942674, 5226.4952788528545610),
)  # fmt: skip
_MIDDLE = (
    (1.42343711074968357734, 4.63033784615654529590, 5.76949722146069140550, 3.64784832476320460504,
     1.27045825245236838258, 0.241780725177450611770, 0.0227238449892691845833,
     7.74545014278341407640e-4),
    (1.0, 2.05319162663775882187, 1.67638483018380384940, 0.689767334985100004550,
     0.148103976427480074590, 0.0151986665636164571966, 5.47593808499534494600e-4,
     1.05075007164441684324e-9),
)  # fmt: skip
_TAIL = (
    (6.65790464350110377720, 5.46378491116411436990, 1.78482653991729133580,
     0.296560571828504891230, 0.0265321895265761230930, 0.00124266094738807843860,
     2.71155556874348757815e-5,
     2.01033439929228813265e-7),
    (1.0, 0.599832206555887937690, 0.136929880922735805310, 0.0148753612908506148525,
     7.86869131145613259100e-4, 1.84631831751005468180e-5, 1.42151175831644588870e-7,
     2.04426310338993978564e-15),
)  # fmt: skip
_LN2 = 0.6931471805599453


def normal_quantile(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """The value below which a standard normal variable is with probability p, 0 < p < 1."""
    q = p - 0.5
    centre = np.abs(q) <= 0.425
    found = np.empty_like(p)
    found[centre] = q[centre] * _ratio(_CENTRE, 0.180625 - q[centre] * q[centre])
    outer = q[~centre]
    r = np.sqrt(-_log(np.minimum(p[~centre], 1.0 - p[~centre])))
    far = np.where(r <= 5.0, _ratio(_MIDDLE, r - 1.6), _ratio(_TAIL, r - 5.0))
    found[~centre] = np.where(outer < 0, -far, far)
    return found


def _ratio(
    terms: tuple[tuple[float, ...], tuple[float, ...]], x: NDArray[np.float64]
) -> NDArray[np.float64]:
    above, below = (_polynomial(one, x) for one in terms)
    return above / below


def _polynomial(terms: tuple[float, ...], x: NDArray[np.float64]) -> NDArray[np.float64]:
    total = np.zeros_like(x)
    for term in reversed(terms):
        total = total * x + term
    return total


def _log(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """ln x by 2 artanh((m - 1) / (m + 1)), |.| < 0.34, of the mantissa."""
    mantissa, exponent = np.frexp(x)  # 0.5 to 1
    s: NDArray[np.float64] = (mantissa - 1.0) / (mantissa + 1.0)
    series = _polynomial(tuple(1.0 / n for n in range(1, 41, 2)), s * s)
    found: NDArray[np.float64] = 2.0 * s * series + exponent * _LN2
    return found
