"""From an exit to whoever answers it: one table a kind, sorted by range, made once.

The native halves stand in the backend's C table (``rift_dispatch.c``, the same rules); this is the table
of the Python halves, asked for what comes through.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from rift_core.errors import ConfigError, UnhandledExitError
from rift_core.exits import ExitHandler, ExitKind, Stop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from rift_core.backend import VCpu
    from rift_core.exits import Exit, ExitResult

    Observer = Callable[[VCpu, Exit], None]

_EVERYWHERE = range(1 << 64)
_DEFAULTS = {
    ExitKind.HALT: Stop(0, "halt"),  # nothing can wake it
    ExitKind.POWER_OFF: Stop(0, "power-off"),
    ExitKind.RESET: Stop(0, "reset"),
}
"""Answers to exits that nobody takes; by kind."""


class _Table:
    """The handlers of one kind."""

    def __init__(self) -> None:
        self.starts: list[int] = []
        self.owners: list[tuple[range, ExitHandler]] = []
        self.fallbacks: list[tuple[range, ExitHandler]] = []

    def add(self, handler: ExitHandler, kind: ExitKind) -> None:
        where = handler.where if handler.where is not None else _EVERYWHERE
        if where.step != 1 or where.start >= where.stop:
            raise ConfigError(f"exit handler {handler.name!r}: {where} is not a range of addresses")
        if handler.fallback:
            self.fallbacks.append((where, handler))
            return
        at = bisect_right(self.starts, where.start)
        for other, owner in self.owners[max(at - 1, 0) : at + 1]:
            if other.start < where.stop and where.start < other.stop:
                raise ConfigError(
                    f"exit handlers {owner.name!r} and {handler.name!r} both claim {kind.name} "
                    f"{max(other.start, where.start):#x}-{min(other.stop, where.stop) - 1:#x}; "
                    "move one of them in its [[exit_handlers]] table, or drop it"
                )
        self.starts.insert(at, where.start)
        self.owners.insert(at, (where, handler))

    def owner(self, address: int) -> ExitHandler | None:
        at = bisect_right(self.starts, address) - 1
        if at >= 0 and address < self.owners[at][0].stop:
            return self.owners[at][1]
        return None


class Dispatcher:
    """Answers exits with the Python halves of a machine's handlers.

    :raises ConfigError: two handlers that are not fallbacks claim the same exit; both are named.
    """

    def __init__(self, handlers: Iterable[ExitHandler]) -> None:
        self.handlers = tuple(handlers)
        self._tables: dict[int, _Table] = {}
        self._observers: dict[int, list[Observer]] = {}
        self._finishers = tuple(dict.fromkeys(h.finish for h in self.handlers if h.finish is not None))
        for handler in self.handlers:
            for kind in handler.kinds:
                table = self._tables.get(kind)
                if table is None:
                    table = self._tables[kind] = _Table()
                table.add(handler, kind)

    def observe(self, kind: ExitKind, function: Observer) -> Callable[[], None]:
        """Call ``function`` with each exit of ``kind`` that reaches Python, before its handler: for tracers.

        What it returns, when called, puts an end to it.
        """
        self._observers.setdefault(kind, []).append(function)

        def stop() -> None:
            left = [other for other in self._observers.get(kind, ()) if other is not function]
            if left:
                self._observers[kind] = left
            else:
                self._observers.pop(kind, None)

        return stop

    def dispatch(self, vcpu: VCpu, exit: Exit) -> ExitResult:
        """The first answer that is not None: the owner of the address, then the fallbacks.

        :raises UnhandledExitError: nobody answers.
        """
        result = self.answer(vcpu, exit)
        if result is None:
            raise self.unanswered(exit)
        return result

    def answer(self, vcpu: VCpu, exit: Exit) -> ExitResult | None:
        """As :meth:`dispatch`, but None when nobody answers.

        A HALT that nobody takes ends the thread with ``Stop(0, "halt")``, POWER_OFF and RESET with theirs,
        which :meth:`Context.loop` hands to all other threads of the machine as well.
        """
        kind = exit.kind
        if self._observers:
            for observer in self._observers.get(kind, ()):
                observer(vcpu, exit)
        table = self._tables.get(kind)
        if table is not None:
            owner = table.owner(exit.address)
            if owner is not None:
                result = owner.handle(vcpu, exit)
                if result is not None:
                    return result
            for where, handler in table.fallbacks:
                if where.start <= exit.address < where.stop:
                    result = handler.handle(vcpu, exit)
                    if result is not None:
                        return result
        return _DEFAULTS.get(kind)

    def finish(self) -> Exception | None:
        """Tell the handlers that a run or a call has ended; the first exception that one of them raised."""
        failure: Exception | None = None
        for finish in self._finishers:
            try:
                finish()
            except Exception as error:
                failure = failure or error
        return failure

    def asked(self, exit: Exit) -> tuple[str, ...]:
        """Names of the handlers that an exit is offered to, in order."""
        table = self._tables.get(exit.kind)
        if table is None:
            return ()
        owner = table.owner(exit.address)
        first = (owner.name,) if owner is not None else ()
        return first + tuple(h.name for where, h in table.fallbacks if where.start <= exit.address < where.stop)

    def unanswered(self, exit: Exit) -> UnhandledExitError:
        """The error that says so, and who was asked."""
        asked = self.asked(exit)
        who = f"asked: {', '.join(asked)}" if asked else "no handler is installed for it"
        return UnhandledExitError(f"nobody answers the guest's exit: {exit} ({who})", exit=exit, handlers=asked)
