"""What the host tells the guest's runtime before the first thread starts: the symbol ``rift_info``.

The layout is that of ``struct rift_info`` in ``rift_guest.h`` (a test compares the two). Later versions
only append members, so that payloads and hosts of different age get along: the host writes as much as
the payload has room for.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

from rift_core.errors import BinaryError


@dataclass(frozen=True, slots=True)
class GuestInfo:
    """The values; 0 where nothing is known. Addresses and sizes in bytes.

    :param doorbell: guest-virtual address of the doorbell page.
    :param tables_gva: supervisor read-write mapping of the page-table memory at ``tables_gpa``.
    :param spare_gpa: pages that the guest may use as it likes; ``spare_gva`` a supervisor read-write
        mapping of them, or 0: then they cannot become page tables.
    :param counter_hz: frequency of the guest's time counter.
    :param threads: how many threads the configuration names.
    """

    doorbell: int = 0
    page_size: int = 0x1000
    tables_gva: int = 0
    tables_gpa: int = 0
    tables_size: int = 0
    spare_gva: int = 0
    spare_gpa: int = 0
    spare_size: int = 0
    counter_hz: int = 0
    threads: int = 0

    SYMBOL: ClassVar[str] = "rift_info"
    """Where a payload wants it."""

    MAGIC: ClassVar[int] = int.from_bytes(b"RIFTINFO", "little")
    VERSION: ClassVar[int] = 1
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<QII9QII")
    """magic, version, bytes, then the members in order, and a reserved word."""

    def pack(self, room: int | None = None) -> bytes:
        """The struct's bytes, at most ``room`` of them.

        :raises struct.error: a value does not fit.
        """
        data = self.LAYOUT.pack(
            self.MAGIC,
            self.VERSION,
            self.LAYOUT.size if room is None else min(room, self.LAYOUT.size),
            self.doorbell,
            self.page_size,
            self.tables_gva,
            self.tables_gpa,
            self.tables_size,
            self.spare_gva,
            self.spare_gpa,
            self.spare_size,
            self.counter_hz,
            self.threads,
            0,
        )
        return data if room is None else data[:room]

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> GuestInfo:
        """Read what stands at the symbol: before the host fills it in, ``doorbell`` is the address that the
        payload was built for.

        :raises BinaryError: it is another struct of that name, or too short.
        """
        if len(data) < cls.LAYOUT.size:
            raise BinaryError(f"{cls.SYMBOL} has {len(data)} bytes; struct rift_info has {cls.LAYOUT.size}")
        magic, version, _, *values, _ = cls.LAYOUT.unpack_from(data)
        if magic != cls.MAGIC or version < 1:
            raise BinaryError(
                f"{cls.SYMBOL} is not struct rift_info of rift_guest.h: it starts with {magic:#x}, version {version}"
            )
        return cls(*values)
