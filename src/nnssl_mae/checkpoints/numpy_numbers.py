"""Single numbers that numpy pickled, read without numpy.

nnU-Net keeps losses and Dice scores as numpy scalars, so its checkpoints name ``numpy.dtype`` and
``numpy._core.multiarray.scalar``. torch's safe loading calls what stands here under these names instead: untrusted
bytes never reach numpy's own unpickling, whatever its version, and there is no way to arrays or objects.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

_FORMATS = {
    "f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I",
    "i8": "q", "u8": "Q",
}  # fmt: skip


class NumberType:
    """A number's type, such as ``f8``; its state says the byte order."""

    def __init__(self, code: Any = None, *flags: Any) -> None:
        if code not in _FORMATS:
            raise ValueError(f"numpy's type {str(code)[:20]!r} is not that of a number")
        self.format = _FORMATS[code]
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(number_type: Any, raw: Any) -> bool | int | float:
    if not isinstance(number_type, NumberType) or not isinstance(raw, bytes):
        raise ValueError("not a number of numpy")
    (value,) = struct.unpack(number_type.order + number_type.format, raw)
    result: bool | int | float = value
    return result


def number(number_type: Any, raw: Any) -> bool | int | float:
    """``numpy._core.multiarray.scalar``: the number that the bytes stand for."""
    return _number(number_type, raw)


def number_of_numpy_1(number_type: Any, raw: Any) -> bool | int | float:
    """``numpy.core.multiarray.scalar``, its name before numpy 2."""
    return _number(number_type, raw)


def _standing_for(name: str, ours: Callable[..., Any]) -> Callable[..., Any]:
    """``ours`` under the name that the file uses: torch looks classes and functions up by module and name."""
    ours.__module__, _, ours.__qualname__ = name.rpartition(".")
    ours.__name__ = ours.__qualname__
    return ours


NUMPY_NUMBERS: tuple[Callable[..., Any], ...] = (
    _standing_for("numpy.dtype", NumberType),
    _standing_for("numpy._core.multiarray.scalar", number),
    _standing_for("numpy.core.multiarray.scalar", number_of_numpy_1),
)
