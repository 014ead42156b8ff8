"""A vCPU of the fake backend, and what its bindings do for it."""

from __future__ import annotations

import errno
import json
import threading
import zlib
from typing import TYPE_CHECKING, Any, Protocol

from rift_core.errors import HypervisorError, StateError, UnsupportedError
from rift_core.exits import Exit, ExitKind

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.backend import Watchpoint
    from rift_core.testing.fake_memory import PhysicalMemory
    from rift_core.testing.fakes import FakeVm

_KICK_STEPS = 64
"""Instructions between two looks at the kick word."""

_SAVED_STATE = b"rift-fake-1 "

_STEP, _HARDWARE = 1, 3  # info[0] of a DEBUG exit, see rift_abi.h


class FakeBinding(Protocol):
    """What a binding ``fake/ISA`` puts into ``Binding.implementation``: an interpreter of one instruction at a time.

    One object serves all vCPUs of all VMs, on several threads: what belongs to a vCPU stands in its ``state``,
    a dict with the value of every register of ``registers``. Keys that begin with ``_`` are the binding's
    own scratch (a translation cache, a note between :meth:`step` and :meth:`complete`); the backend drops
    them between two instructions, without asking, whenever the host changes registers, page tables or memory.

    Further attributes that a binding may have:

    - ``exit_kinds: frozenset[ExitKind]``: exits that its guests can cause, beside MMIO and DEBUG;
    - ``capabilities: frozenset[str]``: capabilities to add;
    - ``reset(index: int) -> dict[str, int]``: registers of a fresh vCPU; without it all are 0;
    - ``inject(state, memory, vector: int, code: int | None) -> Exit | None``: deliver an exception;
      it makes the capability ``inject_exception``.
    """

    @property
    def registers(self) -> Mapping[str, int]:
        """Name to width in bits, of every register of the ISA."""

    @property
    def program_counter(self) -> str:
        """Its name: what breakpoints are compared with."""

    def step(self, state: dict[str, Any], memory: PhysicalMemory) -> Exit | None:
        """Execute one instruction. None: done, go on.

        An exit of a write, or of an instruction without data, is returned with the instruction done. A read
        exit (MMIO, port or system register, ``is_write`` False) or a HYPERCALL leaves it open:
        :meth:`complete` finishes it. ``memory.read`` gives None, ``memory.write`` False, where no memory is:
        that is how an MMIO exit arises; its ``address`` is guest-physical, its ``size`` 1 to 8 bytes.
        Whatever the guest does, step must return: an undefined instruction is the guest's exception, or SHUTDOWN.
        """

    def complete(self, state: dict[str, Any], exit: Exit, reply: int) -> bool | None:
        """Finish the read exit with the value that the host read.

        Either store ``reply`` where it belongs, move the program counter on and return None; or note it in
        the scratch and return True: then :meth:`step` is called at once and must finish the instruction.
        """


class FakeVCpu:
    """A vCPU of the fake backend: see :class:`rift_core.backend.VCpu`."""

    def __init__(self, vm: FakeVm, index: int) -> None:
        self._vm = vm
        self._index = index
        self._binding = vm.interpreter
        self._memory = vm.memory
        widths = self._binding.registers
        reset = getattr(self._binding, "reset", None)
        self._state: dict[str, Any] = {**dict.fromkeys(widths, 0), **(reset(index) if reset else {})}
        self._owner = threading.get_ident()  # 0: parked
        self._lock = threading.Lock()
        self._kicked = threading.Event()  # wakes the wait of a native handler too
        self._flush = False
        self._open: Exit | None = None  # a read exit without its reply
        self._queued: Exit | None = None
        self._exit_count = 0
        self._stopped: int | None = None
        self._single_step = False
        self._breakpoints: frozenset[int] = frozenset()
        self._resume_at: int | None = None  # the breakpoint that the last exit reported
        self._running = False
        self._closed = False

    @property
    def index(self) -> int:
        return self._index

    @property
    def exit_count(self) -> int:
        return self._exit_count

    @property
    def stopped(self) -> int | None:
        return self._stopped

    @property
    def kicked(self) -> threading.Event:
        """Set by a kick, cleared by the run that it ends: what a native handler's wait looks at."""
        return self._kicked

    @property
    def widths(self) -> Mapping[str, int]:
        """Register names and their bits."""
        return self._binding.registers

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        self._mine()
        self._complete(0)
        return self.peek(names)

    def peek(self, names: Sequence[str]) -> dict[str, int]:
        """Registers as they are, an open access left open: for native handlers, which are called inside one."""
        widths, state = self._binding.registers, self._state
        for name in names:
            if name not in widths:
                raise HypervisorError("read_registers", errno.EINVAL, f"fake/{self._vm.isa} has no register {name!r}")
        return {name: state[name] for name in names}

    def write_registers(self, values: Mapping[str, int]) -> None:
        self._mine()
        self._complete(0)
        self.poke(values)

    def poke(self, values: Mapping[str, int]) -> None:
        """Set registers and leave an open access open: for native handlers."""
        widths = self._binding.registers
        for name, value in values.items():
            if name not in widths:
                raise HypervisorError("write_registers", errno.EINVAL, f"fake/{self._vm.isa} has no register {name!r}")
            if not 0 <= value < 1 << widths[name]:
                text = f"{name} has {widths[name]} bits, not {value:#x}"
                raise HypervisorError("write_registers", errno.EINVAL, text)
        self._drop_scratch()
        self._state.update(values)
        self._resume_at = None

    def run(self, reply: int | None = None) -> Exit:
        self._mine()
        self._running = True
        try:
            return self._run(reply)
        finally:
            self._running = False

    def _run(self, reply: int | None) -> Exit:
        self._stopped = None
        self._complete(0 if reply is None else reply)
        exit = self._queued
        self._queued = None
        while True:
            if exit is None:
                exit = self._enter()
            if exit.kind is ExitKind.INTERRUPTED:
                return exit
            self._exit_count += 1
            if not self._is_write(exit):
                self._open = exit
            natives = self._vm.natives
            answer = natives.serve(self, self._vm.memory, exit) if natives is not None else None
            if answer is None:
                return exit
            if answer.stopped:
                self._stopped = answer.value
                self._complete(0)
                return exit
            self._complete(answer.value)
            exit = self._queued
            self._queued = None

    def kick(self) -> None:
        self._kicked.set()

    def inject_exception(self, vector: int, code: int | None = None) -> None:
        self._mine()
        inject = getattr(self._binding, "inject", None)
        if inject is None:
            raise UnsupportedError(f"fake/{self._vm.isa} has no capability inject_exception")
        self._open = None  # the access has failed: the exception stands in its place
        self._drop_scratch()
        self._queued = inject(self._state, self._memory, vector, code)

    def drop_events(self) -> None:
        self._mine()
        self._open = None
        self._drop_scratch()
        self._queued = None

    def inject_interrupt(self, vector: int) -> None:
        self._mine()
        raise UnsupportedError(f"fake/{self._vm.isa} has no capability inject_interrupt")

    def set_debug(
        self,
        *,
        single_step: bool = False,
        software: bool = False,
        breakpoints: Sequence[int] = (),
        watchpoints: Sequence[Watchpoint] = (),
    ) -> None:
        self._mine()
        for capability, asked in (("debug_sw_breakpoint", software), ("debug_watchpoint", watchpoints)):
            if asked:
                raise UnsupportedError(f"fake/{self._vm.isa} has no capability {capability}")
        self._single_step = single_step
        self._breakpoints = frozenset(breakpoints)

    def save(self) -> bytes:
        self._mine()
        self._complete(0)
        registers = {name: self._state[name] for name in self._binding.registers}
        body = json.dumps({"isa": self._vm.isa, "registers": registers}).encode()
        return _SAVED_STATE + b"%08x " % zlib.crc32(body) + body

    def restore(self, state: bytes) -> None:
        self._mine()
        head, rest = state[: len(_SAVED_STATE)], state[len(_SAVED_STATE) :]
        checksum, body = rest[:9], rest[9:]
        if head != _SAVED_STATE or checksum != b"%08x " % zlib.crc32(body):
            raise HypervisorError("restore", errno.EINVAL, "damaged, or not of this version of the fake backend")
        saved = json.loads(body)
        if saved["isa"] != self._vm.isa or saved["registers"].keys() != self._binding.registers.keys():
            raise HypervisorError("restore", errno.EINVAL, f"a state of {saved['isa']}, this is {self._vm.isa}")
        self._open = self._queued = self._resume_at = None
        self._state = saved["registers"]

    def park(self) -> None:
        self._mine()
        self._complete(0)
        self._owner = 0

    def adopt(self) -> None:
        with self._lock:
            if self._closed or self._owner:
                raise StateError(f"vCPU {self._index} is {'closed' if self._closed else 'not parked'}")
            self._owner = threading.get_ident()

    def close(self) -> None:
        if self._closed:
            return
        if self._running:
            raise StateError(f"vCPU {self._index} is running: kick it first")
        self._closed = True
        self._vm.forget(self)

    def drop_translations(self) -> None:
        """Forget what was cached, before the next instruction. Any thread."""
        self._flush = True

    def _mine(self) -> None:
        if self._owner != threading.get_ident():
            what = "is parked: adopt it first" if not self._owner else "belongs to another thread"
            raise StateError(f"vCPU {self._index} {what}")
        if self._closed:
            raise StateError(f"vCPU {self._index} is closed")

    def _drop_scratch(self) -> None:
        self._flush = False
        self._state = {name: value for name, value in self._state.items() if name[0] != "_"}

    @staticmethod
    def _is_write(exit: Exit) -> bool:
        if exit.kind in (ExitKind.PORT_IO, ExitKind.MMIO, ExitKind.SYSTEM_REGISTER):
            return exit.is_write
        return exit.kind is not ExitKind.HYPERCALL

    def _complete(self, reply: int) -> None:
        exit = self._open
        if exit is None:
            return
        self._open = None
        if exit.size:
            reply &= (1 << 8 * exit.size) - 1
        if self._binding.complete(self._state, exit, reply & (1 << 64) - 1):
            self._queued = self._binding.step(self._state, self._memory)

    def _enter(self) -> Exit:
        """Interpret until an exit or a kick. A Python signal handler may raise from here: an instruction
        works on a copy of the state then, so that the registers are those before it."""
        step, memory, kicked = self._binding.step, self._memory, self._kicked
        careful = threading.current_thread() is threading.main_thread()
        while True:
            if kicked.is_set():
                kicked.clear()
                return Exit(ExitKind.INTERRUPTED)
            if self._flush:
                self._drop_scratch()
            if self._single_step or self._breakpoints:
                exit = self._debug_step()
                if exit is not None:
                    return exit
                continue
            if careful:
                for _ in range(_KICK_STEPS):
                    state = self._state.copy()
                    exit = step(state, memory)
                    self._state = state
                    if exit is not None:
                        return exit
            else:
                state = self._state
                for _ in range(_KICK_STEPS):
                    exit = step(state, memory)
                    if exit is not None:
                        return exit

    def _debug_step(self) -> Exit | None:
        name = self._binding.program_counter
        pc = self._state[name]
        if pc in self._breakpoints and pc != self._resume_at:
            self._resume_at = pc
            return Exit(ExitKind.DEBUG, pc, info=(_HARDWARE, 0, 0))
        self._resume_at = None
        state = self._state.copy()
        exit = self._binding.step(state, self._memory)
        self._state = state
        if exit is None and self._single_step:
            self._resume_at = state[name]
            return Exit(ExitKind.DEBUG, state[name], info=(_STEP, 0, 0))
        return exit
