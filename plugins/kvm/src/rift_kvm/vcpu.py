"""One vCPU: thin Python over the native run loop."""

from __future__ import annotations

import struct
import threading
from threading import get_ident
from typing import TYPE_CHECKING, Any

from rift_core.errors import ForkedMachineError, HypervisorError, StateError, UnsupportedError
from rift_core.exits import Exit, ExitKind
from rift_core.forks import WHOLE
from rift_core.interrupts import HELD
from rift_core.register_batches import Batches
from rift_kvm.errors import check, ffi, lib, new_error, raise_error

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rift_core.backend import Watchpoint
    from rift_kvm.vm import KvmVm

_EXIT = struct.Struct("<IIQQII")  # struct rift_exit, up to info
_INFO = struct.Struct("<6Q")
_MASK = 0xFFFF_FFFF_FFFF_FFFF
_RANGE_ERROR = 34  # ERANGE
_SPACE_ERROR = 28  # ENOSPC
_BUSY_ERROR = 16  # EBUSY
_UNSUPPORTED_ERROR = 95  # EOPNOTSUPP
_NO_VECTOR = 0xFFFF_FFFF  # on no ISA
_INVALID_ERROR = 22  # EINVAL
_UNWATCHABLE = (_INVALID_ERROR, _UNSUPPORTED_ERROR)
_WATCHES = {"write": lib.RIFT_KVM_WRITE, "read": lib.RIFT_KVM_READ, "access": lib.RIFT_KVM_READ_WRITE}

_KINDS: tuple[ExitKind, ...] = (ExitKind.UNKNOWN, *ExitKind)  # by number
_BOOLEANS = (False, True)
_WITH_INFO = frozenset(
    {ExitKind.HYPERCALL, ExitKind.DEBUG, ExitKind.MEMORY_FAULT, ExitKind.FAIL_ENTRY, ExitKind.USER_CALL}
)
_INTERRUPTED = Exit(ExitKind.INTERRUPTED)
_NOBODY = 0  # no thread has this ident

_new_exit = tuple.__new__  # what Exit() does, without its argument parsing: made once an exit
_run = lib.rift_kvm_vcpu_run


class KvmVCpu:
    """A vCPU. Made by :meth:`KvmVm.create_vcpu`; see ``rift_core.backend.VCpu`` for the contract.

    Registers are cached in C between two runs, and transferred in groups: the general ones together with
    the entry, the others when they are written.
    """

    def __init__(self, vm: KvmVm, index: int) -> None:
        self._native: Any = None
        self._vm = vm
        self._index = index
        self._forked = False
        self._owner = get_ident()
        self._error = new_error()
        native = lib.rift_kvm_vcpu_create(vm.native, index, _on_main(), vm.config.kick_signal, self._error)
        if native == ffi.NULL:
            self._owner = _NOBODY
            raise_error(self._error)
        self._native = native
        self._control = ffi.gc(lib.rift_kvm_vcpu_control(native), lib.rift_kvm_control_release)
        self._window = lib.rift_kvm_vcpu_window(native)
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
        return int(lib.rift_kvm_control_exits(self._control))

    def kick(self) -> None:
        """Make :meth:`run` return INTERRUPTED soon: the one in progress, or the next."""
        if not self._forked:
            lib.rift_kvm_control_kick(self._control)

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
        if lib.rift_kvm_vcpu_read(self._native, batch.ids, batch.count, batch.words, self._error):
            raise_error(self._error)
        return batch.values()

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Set registers, in one batch. An open access is completed first.

        :raises HypervisorError: an unknown register, or a value that does not fit or that KVM refuses.
        :raises UnsupportedError: ``tsc``, where guests read the host's own counter.
        """
        if get_ident() != self._owner:
            self._refuse()
        batch = self._batches.get(tuple(values))
        batch.fill(values.values())
        if lib.rift_kvm_vcpu_write(self._native, batch.ids, batch.count, batch.words, self._error):
            if self._error.code == _RANGE_ERROR:
                raise HypervisorError("register access", 0, batch.explain(values))
            if self._error.code == _UNSUPPORTED_ERROR:
                self._require(ffi.string(self._error.operation).decode())
            raise_error(self._error)

    def inject_exception(self, vector: int, code: int | None = None) -> None:
        """Deliver an exception at the next entry.

        As the answer to an open access it belongs to the instruction that makes it. On x86-64 whether an error code
        is pushed follows from the vector, and #GP as the answer to an MSR access is raised by KVM itself.
        :raises HypervisorError: no such vector or exception class.
        """
        self._require("inject_exception")
        given, number = code is not None, vector if 0 <= vector < _NO_VECTOR else _NO_VECTOR
        if lib.rift_kvm_vcpu_inject(self._native, number, given, (code or 0) & 0xFFFF_FFFF, self._error) < 0:
            if self._error.code == _INVALID_ERROR:
                raise HypervisorError("inject_exception", 0, f"{vector} is not the vector of an exception")
            raise_error(self._error)

    def inject_interrupt(self, vector: int) -> None:
        """Not here: without an interrupt controller nobody tells when the guest takes interrupts.

        :raises UnsupportedError: always.
        """
        self._require("inject_interrupt")

    def drop_events(self) -> None:
        """Forget what was to be delivered or reported and has not been. See ``rift_core.backend.VCpu.drop_events``."""
        self._check_owner()
        check(lib.rift_kvm_vcpu_drop_events(self._native, self._error), self._error)

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
            if asked and capability not in self._vm.capabilities and f"{capability}_user" not in self._vm.capabilities:
                self._require(capability)
        self._check_owner()
        points = [(address & _MASK, 1, lib.RIFT_KVM_EXECUTE) for address in breakpoints]
        points += [(w.address & _MASK, w.size, _WATCHES[w.access]) for w in watchpoints]
        array = ffi.new("struct rift_kvm_debug_point[]", points or 1)
        debug = ffi.new("struct rift_kvm_debug *", (single_step, software, len(points), 0, array))
        status = lib.rift_kvm_vcpu_debug(self._native, debug, self._error)
        if status < 0:
            self._explain_debug(len(points), watchpoints)

    def _explain_debug(self, count: int, watchpoints: Sequence[Watchpoint]) -> None:
        code = self._error.code
        if code == _SPACE_ERROR:
            text = f"{count} breakpoints and watchpoints are more than the CPU has"
            raise HypervisorError("KVM_SET_GUEST_DEBUG", 0, text)
        if code in _UNWATCHABLE:
            listed = ", ".join(f"{w.access} of {w.size} bytes at {w.address:#x}" for w in watchpoints)
            raise UnsupportedError(f"the CPU cannot watch for one of: {listed} (backend kvm)")
        check(-1, self._error)

    def save(self) -> bytes:
        """The whole state of the vCPU; what an unanswered access would have given is 0."""
        self._check_owner()
        size = ffi.new("size_t *", 16 * 1024)
        while True:
            buffer = ffi.new("char[]", size[0])
            status = lib.rift_kvm_vcpu_save(self._native, buffer, size, self._error)
            if status < 0 and self._error.code == _SPACE_ERROR and size[0] > len(buffer):
                continue
            check(status, self._error)
            return bytes(ffi.buffer(buffer, size[0]))

    def restore(self, state: bytes) -> None:
        """Take a state of :meth:`save`.

        :raises HypervisorError: it is of another version, or damaged.
        """
        self._check_owner()
        hint = "the state is damaged, or was saved by another version or another ISA"
        check(lib.rift_kvm_vcpu_restore(self._native, state, len(state), self._error), self._error, hint)

    def park(self) -> None:
        """Give up ownership."""
        with self._vm.lock:  # a thread's end may coincide with close()
            self._check_owner()
            self._owner = _NOBODY
            lib.rift_kvm_vcpu_park(self._native)

    def adopt(self) -> None:
        """Become the owner of a parked vCPU."""
        with self._vm.lock:
            if self._native is None or self._forked or self._owner not in (_NOBODY, get_ident()):
                self._refuse("is not parked")
            lib.rift_kvm_vcpu_adopt(self._native, _on_main())
            self._owner = get_ident()

    def close(self) -> None:
        """Release it; from any thread, when it is not in the guest.

        :raises StateError: a thread is in the guest with it.
        """
        with HELD, self._vm.lock, WHOLE:
            native = self._native
            if native is None or self._forked:
                return
            if lib.rift_kvm_vcpu_close(native, self._error) < 0:
                if self._error.code == _BUSY_ERROR:
                    raise StateError(f"vCPU {self._index} is in the guest: kick it and wait before closing it")
                raise_error(self._error)
            self._native = None
            self._owner = _NOBODY
            self._vm.forget_vcpu(self)

    # -- the rest --------------------------------------------------------------------------------

    def abandon(self) -> None:
        """Let go in a forked child: the descriptors only."""
        self._forked = True
        self._owner = _NOBODY
        if self._native is not None:
            lib.rift_kvm_vcpu_forget(self._native)
            self._native = None

    def _check_owner(self) -> None:
        if get_ident() != self._owner:
            self._refuse()

    def _require(self, capability: str) -> None:
        self._check_owner()
        if capability not in self._vm.capabilities:
            raise UnsupportedError(f"this machine's KVM lacks the capability {capability} (backend kvm)")

    def _refuse(self, why: str = "belongs to another thread: only kick() may be called from here") -> None:
        if self._forked:
            raise ForkedMachineError("this vCPU belongs to the parent of this process")
        if self._native is None:
            raise StateError(f"vCPU {self._index} is closed")
        if self._owner == _NOBODY:
            why = "is parked: adopt it first"
        raise StateError(f"vCPU {self._index} {why}")


def _on_main() -> bool:
    """Whether the calling thread is the one that runs Python's signal handlers."""
    return threading.current_thread() is threading.main_thread()
