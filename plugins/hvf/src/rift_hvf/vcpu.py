"""One vCPU: thin Python over the native run loop."""

from __future__ import annotations

import errno
import struct
from threading import get_ident
from typing import TYPE_CHECKING, Any

from rift_core.errors import ForkedMachineError, HypervisorError, StateError, UnsupportedError
from rift_core.exits import Exit, ExitKind
from rift_core.forks import WHOLE
from rift_core.interrupts import HELD
from rift_core.register_batches import Batches
from rift_hvf.errors import check, code_of, ffi, lib, new_error, raise_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.backend import Watchpoint
    from rift_hvf.vm import HvfVm

_EXIT = struct.Struct("<IIQQII")  # struct rift_exit, up to info
_INFO = struct.Struct("<6Q")
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_NO_VECTOR = 0xFFFF_FFFF  # on no ISA
_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP)
_WATCHES = {"write": lib.RIFT_HVF_WRITE, "read": lib.RIFT_HVF_READ, "access": lib.RIFT_HVF_READ_WRITE}

_KINDS: tuple[ExitKind, ...] = (ExitKind.UNKNOWN, *ExitKind)  # by number
_BOOLEANS = (False, True)
_WITH_INFO = frozenset(
    {ExitKind.HYPERCALL, ExitKind.DEBUG, ExitKind.MEMORY_FAULT, ExitKind.FAIL_ENTRY, ExitKind.USER_CALL}
)
_INTERRUPTED = Exit(ExitKind.INTERRUPTED)
_NOBODY = 0  # no thread has this ident

_new_exit = tuple.__new__  # what Exit() does, without its argument parsing: made once an exit
_run = lib.rift_hvf_vcpu_run


class HvfVCpu:
    """A vCPU. Made by :meth:`HvfVm.create_vcpu`; see ``rift_core.backend.VCpu`` for the contract.

    The hypervisor's own vCPU exists while its thread uses this one; parked, it is a block of bytes.
    """

    def __init__(self, vm: HvfVm, index: int) -> None:
        self._native: Any = None
        self._vm = vm
        self._index = index
        self._forked = False
        self._owner = get_ident()
        self._error = new_error()
        native = lib.rift_hvf_vcpu_create(vm.native, index, self._error)
        if native == ffi.NULL:
            self._owner = _NOBODY
            raise_error(self._error)
        self._native = native
        self._control = ffi.gc(lib.rift_hvf_vcpu_control(native), lib.rift_hvf_control_release)
        self._window = lib.rift_hvf_vcpu_window(native)
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
        """Exits so far, those served natively included, those that nobody needs to see not."""
        return int(lib.rift_hvf_control_exits(self._control))

    def kick(self) -> None:
        """Make :meth:`run` return INTERRUPTED soon: the one in progress, or the next."""
        if not self._forked:
            lib.rift_hvf_control_kick(self._control)

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
        if lib.rift_hvf_vcpu_read(self._native, batch.ids, batch.count, batch.words, self._error):
            raise_error(self._error)
        return batch.values()

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Set registers, in one batch. An open access is completed first.

        :raises HypervisorError: an unknown register, or a value that does not fit or that the hypervisor refuses.
        """
        if get_ident() != self._owner:
            self._refuse()
        batch = self._batches.get(tuple(values))
        batch.fill(values.values())
        if lib.rift_hvf_vcpu_write(self._native, batch.ids, batch.count, batch.words, self._error):
            if self._error.code == errno.ERANGE:
                raise HypervisorError("register access", 0, batch.explain(values))
            raise_error(self._error)

    def inject_exception(self, vector: int, code: int | None = None) -> None:
        """Deliver an exception at the next entry; as the answer to an open access it belongs to its instruction.

        :raises HypervisorError: no such vector or exception class.
        """
        self._require("inject_exception")
        given, number = code is not None, vector if 0 <= vector < _NO_VECTOR else _NO_VECTOR
        if lib.rift_hvf_vcpu_inject(self._native, number, given, (code or 0) & 0xFFFF_FFFF, self._error) < 0:
            if self._error.code == errno.EINVAL:
                raise HypervisorError("inject_exception", 0, f"{vector} is not the vector of an exception")
            raise_error(self._error)

    def inject_interrupt(self, vector: int) -> None:
        """Deliver an external interrupt as soon as the guest takes one.

        :raises StateError: another one waits.  :raises HypervisorError: no such vector.
        """
        self._require("inject_interrupt")
        if lib.rift_hvf_vcpu_interrupt(self._native, vector if 0 <= vector < _NO_VECTOR else _NO_VECTOR, self._error):
            if self._error.code == errno.EBUSY:
                raise StateError(f"an interrupt waits already for vCPU {self._index}")
            if self._error.code == errno.EINVAL:
                raise HypervisorError("inject_interrupt", 0, f"{vector} is not the vector of an interrupt")
            raise_error(self._error)

    def drop_events(self) -> None:
        """Forget what was to be delivered or reported and has not been. See ``rift_core.backend.VCpu.drop_events``."""
        self._check_owner()
        if lib.rift_hvf_vcpu_drop_events(self._native, self._error):
            raise_error(self._error)

    def set_debug(
        self,
        *,
        single_step: bool = False,
        software: bool = False,
        breakpoints: Sequence[int] = (),
        watchpoints: Sequence[Watchpoint] = (),
    ) -> None:
        """Choose what stops the guest; while anything does, the breakpoint instruction does too.

        :raises HypervisorError: more breakpoints and watchpoints than the CPU has.
        :raises UnsupportedError: the CPU cannot watch for this access, or not of this size at this address.
        """
        wanted = {
            "debug_single_step": single_step,
            "debug_sw_breakpoint": software,
            "debug_hw_breakpoint": breakpoints,
            "debug_watchpoint": watchpoints,
        }
        for capability, asked in wanted.items():
            if asked:
                self._require(capability)
        self._check_owner()
        points = [(address & _MASK, 1, lib.RIFT_HVF_EXECUTE) for address in breakpoints]
        points += [(w.address & _MASK, w.size, _WATCHES[w.access]) for w in watchpoints]
        array = ffi.new("struct rift_hvf_debug_point[]", points or 1)
        debug = ffi.new("struct rift_hvf_debug *", (single_step, software, len(points), 0, array))
        if lib.rift_hvf_vcpu_debug(self._native, debug, self._error) < 0:
            self._explain_debug(len(points), watchpoints)

    def _explain_debug(self, count: int, watchpoints: Sequence[Watchpoint]) -> None:
        code = code_of(self._error)
        if code == errno.ENOSPC:
            raise HypervisorError("set_debug", 0, f"{count} breakpoints and watchpoints are more than the CPU has")
        if code in _UNSUPPORTED:
            listed = ", ".join(f"{w.access} of {w.size} bytes at {w.address:#x}" for w in watchpoints)
            raise UnsupportedError(f"the CPU cannot watch for one of: {listed} (backend hvf)")
        raise_error(self._error)

    def save(self) -> bytes:
        """The whole state of the vCPU; what an unanswered access would have given is 0."""
        self._check_owner()
        size = ffi.new("size_t *", 16 * 1024)
        while True:
            buffer = ffi.new("char[]", size[0])
            status = lib.rift_hvf_vcpu_save(self._native, buffer, size, self._error)
            if status < 0 and self._error.code == errno.ENOSPC and size[0] > len(buffer):
                continue
            check(status, self._error)
            return bytes(ffi.buffer(buffer, size[0]))

    def restore(self, state: bytes) -> None:
        """Take a state of :meth:`save`.

        :raises HypervisorError: it is of another version, or damaged.
        """
        self._check_owner()
        hint = "the state is damaged, or was saved by another version or another ISA"
        check(lib.rift_hvf_vcpu_restore(self._native, state, len(state), self._error), self._error, hint)

    def park(self) -> None:
        """Give up ownership: the hypervisor's vCPU goes, its state stays."""
        with self._vm.lock:  # a thread's end may coincide with close()
            self._check_owner()
            check(lib.rift_hvf_vcpu_park(self._native, self._error), self._error)
            self._owner = _NOBODY

    def adopt(self) -> None:
        """Become the owner of a parked vCPU."""
        with self._vm.lock:
            if self._native is None or self._forked or self._owner not in (_NOBODY, get_ident()):
                self._refuse("is not parked")
            check(lib.rift_hvf_vcpu_adopt(self._native, self._error), self._error)
            self._owner = get_ident()

    def close(self) -> None:
        """Release it; from any thread, when it is not in the guest.

        :raises StateError: a thread is in the guest with it.
        """
        with HELD, self._vm.lock, WHOLE:
            native = self._native
            if native is None or self._forked:
                return
            if lib.rift_hvf_vcpu_close(native, self._error) < 0:
                if self._error.code == errno.EBUSY:
                    raise StateError(f"vCPU {self._index} is in the guest: kick it and wait before closing it")
                raise_error(self._error)
            self._native = None
            self._owner = _NOBODY
            self._vm.forget_vcpu(self)

    # -- the rest --------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Let go in a forked child, which has no vCPU."""
        self._forked = True
        self._owner = _NOBODY
        if self._native is not None:
            lib.rift_hvf_vcpu_forget(self._native)
            self._native = None

    def _check_owner(self) -> None:
        if get_ident() != self._owner:
            self._refuse()

    def _require(self, capability: str) -> None:
        self._check_owner()
        if capability not in self._vm.capabilities:
            raise UnsupportedError(
                f"this machine's Hypervisor.framework lacks the capability {capability} (backend hvf)"
            )

    def _refuse(self, why: str = "belongs to another thread: only kick() may be called from here") -> None:
        if self._forked:
            raise ForkedMachineError("this vCPU belongs to the parent of this process")
        if self._native is None:
            raise StateError(f"vCPU {self._index} is closed")
        if self._owner == _NOBODY:
            why = "is parked: adopt it first"
        raise StateError(f"vCPU {self._index} {why}")
