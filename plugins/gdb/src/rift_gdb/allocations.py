"""Guest memory that clients ask for, for code and data of their own: LLDB's ``_M`` and ``_m``.

Memory that a machine has grown by stays: what a client gives back, or leaves behind, is there for the next one that
asks, and all of it together has a limit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_gdb.errors import FULL, NOT_MAPPED, PacketError

if TYPE_CHECKING:
    from rift_core.engine import Engine
    from rift_core.isa import Area
    from rift_core.memory import Permission

MOST_BYTES = 1 << 26
"""Of one machine, whatever clients ask for."""


class Allocations:
    """One machine's. The server's thread."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._used: dict[int, tuple[Permission, Area]] = {}  # by address
        self._free: list[tuple[Permission, Area]] = []
        self._bytes = 0

    def take(self, size: int, permissions: Permission) -> int:
        """Zeroed pages; their address.

        :raises PacketError: there were too many.  :raises MappingError: the machine has no room.
        """
        size = -(-size // self._engine.page) * self._engine.page
        fitting = [each for each in self._free if each[0] == permissions and each[1].size >= size]
        if fitting:
            found = min(fitting, key=lambda each: each[1].size)
            self._free.remove(found)
            found[1].host[:] = bytes(found[1].size)
        else:
            if self._bytes + size > MOST_BYTES:
                raise PacketError(f"debuggers have asked for {self._bytes} bytes; {MOST_BYTES} are the most", FULL)
            found = (permissions, self._engine.place_area("debugger", size, permissions))
            self._bytes += size
        address = int(found[1].virtual)
        self._used[address] = found
        return address

    def release(self, address: int) -> None:
        """Not needed any more.

        :raises PacketError: nothing was taken there.
        """
        found = self._used.pop(address, None)
        if found is None:
            raise PacketError(f"nothing was allocated at {address:#x}", NOT_MAPPED)
        self._free.append(found)

    def release_all(self) -> None:
        """The client has gone."""
        self._free += self._used.values()
        self._used.clear()
