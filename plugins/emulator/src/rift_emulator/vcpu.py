"""One vCPU: thin Python over the native run loop."""

from __future__ import annotations

import struct
from threading import get_ident
from typing import TYPE_CHECKING, Any

from rift_core.errors import ForkedMachineError, HypervisorError, StateError, UnsupportedError
from rift_core.exits import Exit, ExitKind
from rift_core.forks import WHOLE
from rift_core.interrupts import HELD
from rift_core.register_batches import Batches
from rift_emulator import state as states
from rift_emulator.errors import check, ffi, lib, new_error, raise_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.backend import Watchpoint
    from rift_emulator.vm import EmulatorVm

_EXIT = struct.Struct("<IIQQII")  # struct rift_exit, up to info
_INFO = struct.Struct("<6Q")
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_ERANGE, _ENOSPC, _EBUSY, _EINVAL = 34, 28, 16, 22
_WATCHES = {
    "write": lib.RIFT_EMULATOR_WRITE,
    "read": lib.RIFT_EMULATOR_READ,
    "access": lib.RIFT_EMULATOR_READ_WRITE,
}

_KINDS: tuple[ExitKind, ...] = (ExitKind.UNKNOWN, *ExitKind)  # by number
_BOOLEANS = (False, True)
_WITH_INFO = frozenset({ExitKind.HYPERCALL, ExitKind.DEBUG, ExitKind.MEMORY_FAULT, ExitKind.USER_CALL})
_INTERRUPTED = Exit(ExitKind.INTERRUPTED)
_NOBODY = 0  # no thread has this ident

_new_exit = tuple.__new__  # what Exit() does, without its argument parsing: made once an exit
_run = lib.rift_emulator_vcpu_run


class EmulatorVCpu:
    """A vCPU. Made by :meth:`EmulatorVm.create_vcpu`; see ``rift_core.backend.VCpu`` for the contract."""

    def __init__(self, vm: EmulatorVm, index: int) -> None:
        self._native: Any = None
        self._vm = vm
        self._index = index
        self._forked = False
        self._owner = get_ident()
        self._error = new_error()
        native = lib.rift_emulator_vcpu_create(vm.native, index, self._error)
        if native == ffi.NULL:
            self._owner = _NOBODY
            raise_error(self._error)
        self._native = native
        self._control = ffi.gc(lib.rift_emulator_vcpu_control(native), lib.rift_emulator_control_release)
        self._window = lib.rift_emulator_vcpu_window(native)
        view = memoryview(ffi.buffer(ffi.addressof(self._window, "exit")))
        self._exit = view[: _EXIT.size]
        self._info = view[_EXIT.size :]
        self._batches = Batches(vm.registers)
        self.stopped: int | None = None

    # -- anyone ----------------------------------------------------------------------------------

    @property
    def index(self) -> int:
        """Number in its VM, from 0."""
        return self._index

    @property
    def exit_count(self) -> int:
        """Exits so far, those served natively included."""
        return int(lib.rift_emulator_control_exits(self._control))

    def kick(self) -> None:
        """Make :meth:`run` return INTERRUPTED soon: the one in progress, or the next."""
        if not self._forked:
            lib.rift_emulator_control_kick(self._control)

    # -- the owner -------------------------------------------------------------------------------

    def run(self, reply: int | None = None) -> Exit:
        """Run the guest until an exit that no native handler takes. See ``rift_core.backend.VCpu.run``."""
        if get_ident() != self._owner:
            self._refuse()
        status = _run(self._native, 0, 0) if reply is None else _run(self._native, 1, reply & _MASK)
        if status == 1:
            self.stopped = None
            return _INTERRUPTED
        if status < 0:
            self.stopped = None
            raise_error(self._window.error)
        kind, size, address, value, is_write, reason = _EXIT.unpack_from(self._exit)
        self.stopped = value if status == 2 else None
        name = _KINDS[kind]
        info = _INFO.unpack_from(self._info) if name in _WITH_INFO else ()
        return _new_exit(Exit, (name, address, size, value, _BOOLEANS[is_write], reason, info))

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        """Registers by name. An open access is completed first."""
        if get_ident() != self._owner:
            self._refuse()
        batch = self._batches.get(tuple(names))
        if lib.rift_emulator_vcpu_read(self._native, batch.ids, batch.count, batch.words, self._error):
            raise_error(self._error)
        return batch.values()

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Set registers, in one batch. An open access is completed first."""
        if get_ident() != self._owner:
            self._refuse()
        batch = self._batches.get(tuple(values))
        batch.fill(values.values())
        if lib.rift_emulator_vcpu_write(self._native, batch.ids, batch.count, batch.words, self._error):
            if self._error.code == _ERANGE:
                raise HypervisorError("register access", 0, batch.explain(values))
            raise_error(self._error)

    def inject_exception(self, vector: int, code: int | None = None) -> None:
        """Deliver an exception at the next entry; in place of an open access, which has not happened then.

        :raises HypervisorError: no such vector.
        """
        self._check_owner()
        given = code is not None
        status = -1
        if vector >= 0:
            status = lib.rift_emulator_vcpu_inject(self._native, vector, given, (code or 0) & 0xFFFF_FFFF, self._error)
        if status < 0:
            raise HypervisorError("inject_exception", 0, f"{vector} is not the vector of an exception")

    def inject_interrupt(self, vector: int) -> None:
        """Deliver an interrupt as soon as the guest takes one. See ``rift_core.backend.VCpu.inject_interrupt``."""
        self._check_owner()
        status = lib.rift_emulator_vcpu_interrupt(self._native, vector, self._error) if vector >= 0 else -1
        if status < 0 and vector >= 0 and self._error.code == _EBUSY:
            raise StateError(f"an interrupt waits already for vCPU {self._index}")
        if status < 0:
            raise HypervisorError("inject_interrupt", 0, f"{vector} is not the vector of an interrupt")

    def drop_events(self) -> None:
        """Forget what was to be delivered or reported and has not been. See ``rift_core.backend.VCpu.drop_events``."""
        self._check_owner()
        if lib.rift_emulator_vcpu_drop_events(self._native, self._error):
            raise_error(self._error)

    def set_debug(
        self,
        *,
        single_step: bool = False,
        software: bool = False,
        breakpoints: Sequence[int] = (),
        watchpoints: Sequence[Watchpoint] = (),
    ) -> None:
        """Choose what stops the guest.

        :raises HypervisorError: more breakpoints and watchpoints than there are.
        :raises UnsupportedError: a watchpoint of another size than 1, 2, 4 or 8, or not at a multiple of it.
        """
        self._check_owner()
        points = [(address & _MASK, 1, lib.RIFT_EMULATOR_EXECUTE) for address in breakpoints]
        points += [(w.address & _MASK, w.size, _WATCHES[w.access]) for w in watchpoints]
        array = ffi.new("struct rift_emulator_debug_point[]", points or 1)
        status = lib.rift_emulator_vcpu_debug(self._native, single_step, software, len(points), array, self._error)
        if status == 0:
            return
        if self._error.code == _ENOSPC:
            most = lib.RIFT_EMULATOR_DEBUG_POINTS
            text = f"{len(points)} breakpoints and watchpoints are more than the {most} that there are"
            raise HypervisorError("set_debug", 0, text)
        if self._error.code == _EINVAL:
            listed = ", ".join(f"{w.access} of {w.size} bytes at {w.address:#x}" for w in watchpoints)
            raise UnsupportedError(f"the backend emulator cannot watch for one of: {listed}")
        check(status, self._error)

    def profile(self, on: bool) -> None:
        """Count executed code from now on, from zero, or no longer (capability ``profile``)."""
        self._check_owner()
        check(lib.rift_emulator_vcpu_profile(self._native, on, self._error), self._error)

    def profiled(self) -> list[tuple[int, int, int]]:
        """``(address, bytes, times)``: stretches of code that were executed from start to end. They may overlap."""
        self._check_owner()
        count = lib.rift_emulator_vcpu_blocks(self._native, ffi.NULL, 0)
        blocks = ffi.new("struct rift_emulator_block[]", max(count, 1))
        count = min(count, lib.rift_emulator_vcpu_blocks(self._native, blocks, count))
        return [(blocks[at].pc, blocks[at].bytes, blocks[at].count) for at in range(count)]

    def save(self) -> bytes:
        """The whole state of the vCPU; what an unanswered access would have given is 0."""
        names, sizes = self._vm.state_layout
        return states.pack(self._vm.isa, sizes, list(self.read_registers(names).values()))

    def restore(self, state: bytes) -> None:
        """Take a state of :meth:`save`.

        :raises HypervisorError: it is of another version, or damaged.
        """
        self._check_owner()
        names, sizes = self._vm.state_layout
        self.write_registers(dict(zip(names, states.unpack(self._vm.isa, sizes, state), strict=True)))

    def park(self) -> None:
        """Give up ownership."""
        self._check_owner()
        self._owner = _NOBODY

    def adopt(self) -> None:
        """Become the owner of a parked vCPU."""
        if self._native is None or self._forked or self._owner not in (_NOBODY, get_ident()):
            self._refuse("is not parked")
        self._owner = get_ident()

    def close(self) -> None:
        """Release it; from any thread, when it is not in the guest.

        :raises StateError: a thread is in the guest with it.
        """
        with HELD, self._vm.lock, WHOLE:
            native = self._native
            if native is None or self._forked:
                return
            if lib.rift_emulator_vcpu_close(native, self._error) < 0:
                if self._error.code == _EBUSY:
                    raise StateError(f"vCPU {self._index} is in the guest: kick it and wait before closing it")
                raise_error(self._error)
            self._native = None
            self._owner = _NOBODY
            self._vm.forget_vcpu(self)

    # -- the rest --------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Let go in a forked child, where the engine's memory is a copy that nobody may use."""
        self._forked = True
        self._owner = _NOBODY
        self._native = None

    def _check_owner(self) -> None:
        if get_ident() != self._owner:
            self._refuse()

    def _refuse(self, why: str = "belongs to another thread: only kick() may be called from here") -> None:
        if self._forked:
            raise ForkedMachineError("this vCPU belongs to the parent of this process")
        if self._native is None:
            raise StateError(f"vCPU {self._index} is closed")
        if self._owner == _NOBODY:
            why = "is parked: adopt it first"
        raise StateError(f"vCPU {self._index} {why}")
