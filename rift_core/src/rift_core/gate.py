"""Keeping vCPUs outside the guest while something looks at them, or changes what they run on."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from rift_core.interrupts import HELD

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rift_core.context import Context
    from rift_core.engine import Engine


class Gate:
    """Keeps vCPUs outside the guest: closed, it lets none enter but those it is told to let through. Any thread.

    Closing kicks those inside; they come out with their accesses complete, and wait. Several gates may be closed
    at a time: a vCPU enters when all of them let it through.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.closed = False
        self._through: frozenset[Context] = frozenset()

    def stops(self, context: Context) -> bool:
        """Whether ``context`` has to wait here."""
        return self.closed and context not in self._through

    def close(self, through: Iterable[Context] = ()) -> None:
        """Let nobody enter but ``through``; on a closed gate, change who that is. Returns at once."""
        engine = self._engine
        with HELD, engine.changed:
            self._through = frozenset(through)
            if not self.closed:
                self.closed = True
                engine.gates = (*engine.gates, self)
                engine.waiting += 1
            engine.changed.notify_all()
        for context in list(engine.active):
            if self.stops(context) and not context.held:
                context.kick()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until everybody that it stops is outside the guest, but for the calling thread's own vCPU.

        False when ``timeout`` seconds are over: an exit handler does not return.
        """
        engine, me = self._engine, threading.get_ident()

        def outside() -> bool:
            return all(c.held or not c.running or c.owner == me or not self.stops(c) for c in list(engine.active))

        return engine.wait(outside, timeout)

    def open(self) -> None:
        """Let everybody enter. Harmless when it is open."""
        engine = self._engine
        with HELD, engine.changed:
            if self.closed:
                self.closed = False
                engine.gates = tuple(gate for gate in engine.gates if gate is not self)
                engine.waiting -= 1
                engine.changed.notify_all()
