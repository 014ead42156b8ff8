"""A payload's exception vectors: VBAR_EL1 points at them as they are.

``rift_vectors`` is the guest runtime's table, ``interrupt_table`` what payloads of the original library bring. Any
other symbol will do: 16 entries of 128 bytes, at a multiple of 2 KiB (Arm ARM, "Exception vectors", VBAR_EL1).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_aarch64.builtin_code import VECTORS_SIZE
from rift_core.errors import BinaryError

if TYPE_CHECKING:
    from rift_core.isa import Vectors

RUNTIME_SYMBOL = "rift_vectors"
TABLE_SYMBOL = "interrupt_table"
_ALIGNMENT = 0x800


def vector_base(vectors: Vectors | None, builtin: int) -> int:
    """VBAR_EL1; ``builtin`` is the address of the built-in table.

    :raises BinaryError: the symbol is misaligned, or its segment ends too early.
    """
    if vectors is None:
        return builtin
    where = f"{vectors.symbol} at {vectors.address:#x}"
    if vectors.address % _ALIGNMENT:
        raise BinaryError(f"{where} cannot be a vector table: VBAR_EL1 needs a multiple of {_ALIGNMENT:#x}")
    if vectors.host.nbytes < VECTORS_SIZE:
        raise BinaryError(
            f"{where}: the segment ends after {vectors.host.nbytes} bytes, 16 vectors of 128 bytes take {VECTORS_SIZE}"
        )
    return vectors.address
