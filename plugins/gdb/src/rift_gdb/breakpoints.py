"""Breakpoints and watchpoints that the client has asked for, and by what means each of them is carried out.

A breakpoint becomes an instruction in memory, or takes one of the CPU's debug registers: which of the two
depends on what works at the privilege levels that may execute the place. Where the guest can overwrite it, or where
nothing is mapped yet, a debug register is better, as long as there is one. A watchpoint takes debug registers where
the CPU watches; elsewhere the threads are stepped and the memory is compared after each instruction.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rift_core.backend import Watchpoint
from rift_core.errors import AddressError
from rift_core.memory import Permission
from rift_gdb.errors import FULL, INVALID, NOT_MAPPED, PacketError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rift_core.isa import Privilege
    from rift_gdb.means import Means
    from rift_gdb.memory import View

LARGEST_WATCH = 0x1000
"""Bytes of one watchpoint at most."""

MOST = 10_000
"""Breakpoints and watchpoints at a time: each resumption looks at all of them."""


@dataclass(frozen=True, slots=True)
class Watch:
    """A watchpoint as the client wants it."""

    address: int
    size: int
    access: str  # "write", "read", "access"

    def pieces(self) -> list[Watchpoint]:
        """As debug registers hold it: powers of two up to 8 bytes, aligned."""
        found = []
        address, left = self.address, self.size
        while left:
            size = 8
            while size > left or address % size:
                size //= 2
            found.append(Watchpoint(address, size, self.access))  # type: ignore[arg-type]
            address += size
            left -= size
        return found

    def covers(self, address: int) -> bool:
        """Whether the access at ``address`` may be the watched one: a debug register reports where its piece begins."""
        return self.address - 7 <= address < self.address + self.size


@dataclass(frozen=True, slots=True)
class Arrangement:
    """What is to be in place while the guest runs."""

    patched: dict[int, View] = field(default_factory=dict)
    hardware: tuple[int, ...] = ()
    watchpoints: tuple[Watchpoint, ...] = ()
    compared: tuple[Watch, ...] = ()  # watched by stepping


NOTHING = Arrangement()


class Breakpoints:
    """The client's list.

    :param fits: whether so many breakpoints and watchpoints fit into the debug registers, as the backend says.
    :param levels: the privilege levels of the machine's threads.
    """

    def __init__(
        self,
        means: Means,
        fits: Callable[[tuple[int, ...], tuple[Watchpoint, ...]], bool],
        levels: Callable[[], Iterable[Privilege]],
    ) -> None:
        self._means = means
        self._fits = fits
        self._levels = levels
        self._software: dict[int, View] = {}
        self._hardware: dict[int, View] = {}
        self._watches: dict[Watch, View] = {}
        self._easy: set[tuple[int, bool]] = set()  # those that can be instructions, and take nothing from others

    def __bool__(self) -> bool:
        return bool(self._software or self._hardware or self._watches)

    @property
    def watches(self) -> tuple[Watch, ...]:
        """All watchpoints."""
        return tuple(self._watches)

    @property
    def software(self) -> frozenset[int]:
        """Places of software breakpoints, by whatever means."""
        return frozenset(self._software)

    def __contains__(self, address: int) -> bool:
        return address in self._software or address in self._hardware

    def clear(self) -> None:
        """Forget all."""
        self._software.clear()
        self._hardware.clear()
        self._watches.clear()
        self._easy.clear()

    def add(self, address: int, view: View, *, hardware: bool = False) -> None:
        """A breakpoint.

        :raises PacketError: it cannot be carried out.
        """
        chosen = self._hardware if hardware else self._software
        if address in chosen:
            return
        self._check_number()
        wants_register = hardware and self._means.hardware_works(self._levels_at(address, view))
        if not wants_register and self._can_patch(address, view):
            chosen[address] = view
            self._easy.add((address, hardware))
            return
        before = self._homeless(self.arrange(all=False))
        chosen[address] = view
        arranged = self.arrange(all=False)
        homeless = self._homeless(arranged) - before
        if homeless or (wants_register and address not in arranged.hardware):
            del chosen[address]
            raise self._why_not(address, view)

    def _check_number(self) -> None:
        if len(self._software) + len(self._hardware) + len(self._watches) >= MOST:
            raise PacketError(f"there are {MOST} breakpoints and watchpoints already", FULL)

    def remove(self, address: int, *, hardware: bool = False) -> None:
        """A breakpoint; harmless when it is not there."""
        (self._hardware if hardware else self._software).pop(address, None)
        self._easy.discard((address, hardware))

    def watch(self, watch: Watch, view: View) -> None:
        """A watchpoint.

        :raises PacketError: it cannot be carried out.
        """
        if not 0 < watch.size <= LARGEST_WATCH or watch.address + watch.size > 1 << 64:
            raise PacketError(f"a watchpoint has 1 to {LARGEST_WATCH} bytes", INVALID)
        if watch in self._watches:
            return
        self._check_number()
        before = self._homeless(self.arrange(all=False))
        self._watches[watch] = view
        arranged = self.arrange(all=False)
        carried_out = watch in arranged.compared or set(watch.pieces()) <= set(arranged.watchpoints)
        if carried_out and not self._homeless(arranged) - before:
            return
        del self._watches[watch]
        if not self._means.watch_works(self._levels()):
            raise PacketError(
                "this hypervisor cannot watch for reads; only for writes, by stepping and comparing", INVALID
            )
        raise PacketError("the CPU's debug registers are all in use, or cannot watch for this", FULL)

    def unwatch(self, watch: Watch) -> None:
        """A watchpoint; harmless when it is not there."""
        self._watches.pop(watch, None)

    def view_of(self, watch: Watch) -> View:
        """The memory that it watches."""
        return self._watches[watch]

    def arrange(self, *, all: bool = True) -> Arrangement:
        """Decide who is carried out how: hardware ones and watchpoints first, then those that need a debug register
        most.

        ``all`` False: leave out those that could be instructions when they were added, of which there may be many.
        """
        registers: list[int] = []
        watchpoints: list[Watchpoint] = []
        compared: list[Watch] = []
        patched: dict[int, View] = {}

        def take(address: int) -> bool:
            if address in registers:
                return True
            if self._fits((*registers, address), tuple(watchpoints)):
                registers.append(address)
                return True
            return False

        for address, view in self._points(hardware=True, all=all):
            levels = self._levels_at(address, view)
            if not (self._means.hardware_works(levels) and take(address)) and self._can_patch(address, view):
                patched[address] = view
        for watch in self._watches:
            pieces = watch.pieces()
            if self._means.watch_works(self._levels()) and self._fits(tuple(registers), (*watchpoints, *pieces)):
                watchpoints += pieces
            elif watch.access == "write":
                compared.append(watch)
        wishes: list[tuple[int, View]] = []
        for address, view in self._points(hardware=False, all=all):
            if address in registers:
                continue
            if self._can_patch(address, view):
                patched[address] = view
                if self._volatile(address, view):
                    wishes.append((address, view))
            elif self._means.hardware_works(self._levels_at(address, view)):
                take(address)  # there is no other way
        for address, view in wishes:
            if not self._means.hardware_works(self._levels_at(address, view)):
                continue
            if not take(address):
                break
            del patched[address]
        return Arrangement(patched, tuple(registers), tuple(watchpoints), tuple(compared))

    def _points(self, *, hardware: bool, all: bool) -> list[tuple[int, View]]:
        points = self._hardware if hardware else self._software
        return [each for each in points.items() if all or (each[0], hardware) not in self._easy]

    def _homeless(self, arranged: Arrangement) -> frozenset[int]:
        """Breakpoints that are carried out by no means, of those that need a debug register."""
        placed = {*arranged.patched, *arranged.hardware}
        needy = (*self._points(hardware=False, all=False), *self._points(hardware=True, all=False))
        return frozenset(address for address, _ in needy if address not in placed)

    def _levels_at(self, address: int, view: View) -> frozenset[Privilege]:
        """Who may execute there: supervisor pages only supervisors, user pages everybody."""
        everybody = frozenset(self._levels())
        if view.physical:
            return everybody
        walk = view.walk(address)
        if walk.physical is not None and not walk.permissions & Permission.USER:
            return frozenset({"supervisor"})
        return everybody

    def _volatile(self, address: int, view: View) -> bool:
        """Whether the guest can overwrite what stands there, or nothing is there yet."""
        walk = view.walk(address)
        return walk.physical is None or bool(walk.permissions & Permission.WRITE)

    def _can_patch(self, address: int, view: View) -> bool:
        if not self._means.instructions_work(self._levels_at(address, view)):
            return False
        try:
            return not any(piece.host.readonly for piece in view.pieces(address, 1))
        except AddressError:
            return False

    def _why_not(self, address: int, view: View) -> PacketError:
        levels = self._levels_at(address, view)
        walk = view.walk(address)
        if walk.physical is None and not self._means.hardware_works(levels):
            return PacketError(f"{address:#x} is not mapped: {walk.reason}", NOT_MAPPED)
        if self._means.hardware_works(levels):
            return PacketError(
                f"the CPU's debug registers are all in use, and {address:#x} cannot be written to from the host", FULL
            )
        return PacketError(
            f"nothing stops the guest at {address:#x}: this hypervisor has no breakpoints in "
            f"{' and '.join(sorted(levels))} mode",
            INVALID,
        )
