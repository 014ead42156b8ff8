"""Between Python values and those of C: arguments and results of guest functions, by ctypes' types."""

from __future__ import annotations

import ctypes
import struct
from typing import Any

from rift_core.isa import Argument, ResultType

_FLOATS: dict[type, str] = {ctypes.c_float: "<f", ctypes.c_double: "<d"}
_SIGNED = (ctypes.c_byte, ctypes.c_short, ctypes.c_int, ctypes.c_long, ctypes.c_longlong, ctypes.c_ssize_t)
_UNSIGNED = (
    ctypes.c_ubyte, ctypes.c_ushort, ctypes.c_uint, ctypes.c_ulong, ctypes.c_ulonglong, ctypes.c_size_t, ctypes.c_bool,
)  # fmt: skip
_MASK = (1 << 64) - 1
_new_argument = tuple.__new__  # what a NamedTuple does, less a call: calls with plain integers are frequent

RESULTS: dict[Any, ResultType] = {
    None: ResultType("void", 0),
    ctypes.c_void_p: ResultType("integer", 8, signed=False),
    **{kind: ResultType("integer", ctypes.sizeof(kind), signed=True) for kind in _SIGNED},
    **{kind: ResultType("integer", ctypes.sizeof(kind), signed=False) for kind in _UNSIGNED},
    **{kind: ResultType("float", ctypes.sizeof(kind)) for kind in _FLOATS},
}
"""What ``restype`` may be."""


def to_argument(value: Any) -> Argument:
    """One argument: an int (64 bits wide), a float (a double), a bool, or an instance of a ctypes type.

    :raises TypeError: anything else, with what to do.  :raises OverflowError: an int of more than 64 bits.
    """
    kind = type(value)
    if kind is int:
        if not -(1 << 63) <= value <= _MASK:
            raise OverflowError(f"{value:#x} does not fit into a 64-bit argument")
        return Argument("integer", 8, value & _MASK)
    if kind is float:
        return Argument("float", 8, int.from_bytes(struct.pack("<d", value), "little"))
    if kind in _FLOATS:
        size = ctypes.sizeof(kind)
        return Argument("float", size, int.from_bytes(struct.pack(_FLOATS[kind], value.value), "little"))
    if kind in RESULTS:
        number = int(value.value or 0)
        return Argument("integer", ctypes.sizeof(kind), number & _MASK)
    if isinstance(value, int):  # bool, IntEnum, Gva
        return to_argument(int(value))
    raise TypeError(
        f"cannot pass a {kind.__name__} to the guest: give an int, a float or a ctypes number; put data into guest "
        "memory (machine.view, machine.share) and pass its address"
    )


def to_arguments(values: tuple[Any, ...]) -> tuple[Argument, ...]:
    """All arguments of a call."""
    return tuple(
        [
            _new_argument(Argument, ("integer", 8, value))
            if type(value) is int and 0 <= value <= _MASK
            else to_argument(value)
            for value in values
        ]
    )
