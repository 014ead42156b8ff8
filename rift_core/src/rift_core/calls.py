"""Calls into the guest on the caller's own thread.

A hand-over between host threads costs more than the exit itself, so a call runs where it is made: each
calling thread leases a context and keeps it while it lives. A thread's end parks its contexts for the
next caller, so thousands of short-lived threads share a few vCPUs.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from rift_core.errors import GuestExitError, ReentrancyError, RiftError
from rift_core.interrupts import HELD, MAIN_THREAD
from rift_core.isa import EntryState
from rift_core.timeouts import waitable
from rift_core.values import RESULTS, to_arguments

if TYPE_CHECKING:
    from rift_core.context import Context
    from rift_core.engine import Engine
    from rift_core.isa import Privilege
    from rift_core.memory import Gva


CALL_STACK = 0x1_0000
"""Bytes of the stack of a context that is leased to callers."""

FIRST_CALL = "call-1"
"""The context that a machine without threads has from the start: it is there to be called."""


class _Leases:
    """The contexts of one host thread, by privilege. Dies with the thread, and parks them then."""

    def __init__(self, pool: CallPool) -> None:
        self.pool = pool
        self.contexts: dict[str, Context] = {}

    def __del__(self) -> None:
        for context in self.contexts.values():
            try:
                self.pool.give_back(context)
            except RiftError:  # a finalizer has nobody to tell; the vCPU ends with the machine
                continue


class CallPool:
    """Leases contexts to the host threads that call into one machine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._planned = deque([FIRST_CALL] if f"{FIRST_CALL}/stack" in engine.plan.areas else [])
        self._local = threading.local()
        self._parked: dict[str, deque[Context]] = {"supervisor": deque(), "user": deque()}
        self._numbers = itertools.count(2 if self._planned else 1)

    def call(
        self,
        entry: Gva,
        what: str,
        arguments: tuple[Any, ...],
        timeout: float | None,
        restype: Any,
        privilege: Privilege,
    ) -> Any:
        """Call the guest function at ``entry``. See ``Machine.call``."""
        engine = self._engine
        try:
            kind = RESULTS[restype]
        except (KeyError, TypeError):
            raise TypeError(
                f"restype {restype!r} is not known: give None or a ctypes number such as ctypes.c_int64"
            ) from None
        converted = to_arguments(arguments)
        try:
            context = self._local.leases.contexts[privilege]
        except (AttributeError, KeyError):
            context = self._lease(privilege)
        if context.busy.locked():
            raise ReentrancyError(
                f"{what} is called from an exit handler of a guest call on the same thread; call from another thread"
            )
        vcpu = context.vcpu
        me = threading.get_ident()
        expiry = None
        if timeout is not None and (timeout := waitable(timeout)) is not None:
            expiry = lambda: TimeoutError(f"the call of {what} did not return within {timeout} s")  # noqa: E731
        failure: Exception | None = None
        with context.busy:  # whole, whatever signal arrives: see rift_core.interrupts
            fresh, context.fresh = context.fresh, True  # until it has come back: else the next call starts from scratch
            try:
                context.enter(timeout, expiry, me == MAIN_THREAD.ident)
                # The payload's own vectors would run in supervisor mode on data that user mode can write.
                vectors = engine.vectors if privilege == "supervisor" else None
                state = EntryState(entry, context.stack_top, engine.root, privilege, converted, vectors, engine.abi)
                registers = engine.isa.thread_registers(engine.system, context.areas, state) if fresh else None
                if vcpu is None or context.owner != me:
                    vcpu = context.acquire_vcpu()  # the backend may still be making it: as late as can be
                if registers is not None:
                    context.begin(vcpu, registers)
                vcpu.write_registers(engine.isa.call_registers(engine.system, context.areas, state))
                stop = context.loop(engine.dispatcher)
                returned = context.returned
                if returned is None:
                    raise GuestExitError(
                        f"{what} did not return: the guest ended with {stop.reason} (status {stop.status})", stop=stop
                    )
                result = engine.isa.result(returned, vcpu, kind)
                context.fresh = False
            finally:
                try:
                    failure = engine.dispatcher.finish()
                finally:
                    context.leave()
        if failure is not None:
            raise failure
        return bool(result) if restype is ctypes.c_bool else result

    def give_back(self, context: Context) -> None:
        """Park a context; on the thread that owns it."""
        if self._engine.closing or self._engine.forked:
            return
        context.park()
        self._parked[context.privilege].append(context)

    def _lease(self, privilege: Privilege) -> Context:
        leases: _Leases | None = getattr(self._local, "leases", None)
        if leases is None:
            leases = self._local.leases = _Leases(self)
        with HELD:
            try:
                context = self._parked[privilege].popleft()
            except IndexError:
                context = self._new_context(privilege)
            leases.contexts[privilege] = context
        return context

    def _new_context(self, privilege: Privilege) -> Context:
        name = None
        if privilege == "supervisor":
            with contextlib.suppress(IndexError):
                name = self._planned.popleft()  # by one thread only
        planned = name is not None
        return self._engine.new_context(name or f"call-{next(self._numbers)}", privilege, CALL_STACK, planned=planned)
