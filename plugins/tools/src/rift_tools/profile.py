"""Executed instructions by symbol: the extension ``profile``, which ``rift run --profile`` prints.

Where the backend counts by itself (capability ``profile``) the guest runs at nearly its full speed. Elsewhere it is
executed one instruction at a time.
"""

from __future__ import annotations

import weakref
from collections import Counter
from typing import TYPE_CHECKING

from rift_core.errors import AddressError, UnsupportedError
from rift_core.exits import ExitKind, Resume
from rift_core.plugin import PluginInfo, Section, hookimpl
from rift_core.report import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.errors import RiftError
    from rift_core.exits import Exit, ExitResult, Stop
    from rift_core.isa import GuestFault
    from rift_core.machine import Machine
    from rift_core.thread import Thread

_STEP = 1
_ROWS = 20
_counts: weakref.WeakKeyDictionary[Engine, Profile] = weakref.WeakKeyDictionary()


class Profile:
    """Counts of one machine. ``instructions``: how often the one at an address was executed."""

    forced_steps = False
    """Execute single instructions even where the backend counts by itself."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._native = "profile" in engine.vm.capabilities and not self.forced_steps
        if not self._native and "debug_single_step" not in engine.vm.capabilities:
            raise UnsupportedError("this backend can neither count nor execute single instructions: use the emulator")
        self._pc: dict[int, int] = {}
        self.instructions: Counter[int] = Counter()

    def started(self, context: Context) -> None:
        """A run begins."""
        vcpu = context.vcpu
        if vcpu is None:
            return
        if self._native:
            vcpu.profile(True)  # type: ignore[attr-defined]  # of backends with the capability
            return
        pc = self._engine.isa.program_counter
        self._pc[context.index] = vcpu.read_registers([pc])[pc]
        vcpu.set_debug(single_step=True)

    def stepped(self, context: Context, pc: int) -> None:
        """One instruction is over."""
        self.instructions[self._pc[context.index]] += 1
        self._pc[context.index] = pc

    def ended(self, context: Context) -> None:
        """A run is over."""
        vcpu = context.vcpu
        if vcpu is None or not self._native:
            return  # the instruction that ends a run is not over
        from rift_tools.instructions import Decoder

        decoder = Decoder(self._engine.isa, self._engine)
        for start, size, times in vcpu.profiled():  # type: ignore[attr-defined]
            at = start
            while at < start + size:
                self.instructions[at] += times
                try:
                    at += decoder.at(at, {}).size or 1
                except AddressError:
                    break

    def by_symbol(self) -> list[tuple[str, int]]:
        """Symbols and executed instructions, the most first."""
        counts: Counter[str] = Counter()
        for address, times in self.instructions.items():
            symbol = self._engine.symbols.nearest(address)
            counts[printable(symbol.name) if symbol is not None else "(no symbol)"] += times
        return counts.most_common()

    def report(self) -> str:
        """A table for people."""
        rows = self.by_symbol()
        total = sum(times for _, times in rows)
        lines = [f"{total} instructions executed"]
        lines += [f"{times:>12} {100 * times / total:5.1f} %  {name}" for name, times in rows[:_ROWS]]
        if len(rows) > _ROWS:
            lines.append(f"{sum(times for _, times in rows[_ROWS:]):>12}          in {len(rows) - _ROWS} other symbols")
        return "\n".join(lines)


@hookimpl
def rift_plugin() -> PluginInfo:
    return PluginInfo("extension", "profile", "Executed instructions by symbol", Section)


@hookimpl
def rift_machine_opened(machine: Machine, config: Section) -> Profile:
    counts = _counts[machine.engine] = Profile(machine.engine)
    return counts


@hookimpl
def rift_run_started(context: Context) -> None:
    counts = _counts.get(context.engine)
    if counts is not None:
        counts.started(context)


@hookimpl
def rift_exit_unanswered(
    context: Context, exit: Exit, fault: GuestFault | None, describe: Callable[[], RiftError]
) -> ExitResult | None:
    counts = _counts.get(context.engine)
    if counts is None or fault is not None or exit.kind is not ExitKind.DEBUG or not exit.info or exit.info[0] != _STEP:
        return None
    counts.stepped(context, exit.address)
    return Resume()


@hookimpl
def rift_thread_stopped(thread: Thread, outcome: Stop | BaseException) -> None:
    counts = _counts.get(thread.engine)
    if counts is not None:
        counts.ended(thread.context)
