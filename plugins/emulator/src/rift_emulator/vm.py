"""Virtual machines: memory, native handlers, vCPUs, turns, and what becomes of them at fork."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

from rift_core.backend import Binding
from rift_core.errors import ForkedMachineError, HypervisorError, StateError
from rift_core.forks import WHOLE
from rift_core.host_memory import buffer_address
from rift_core.interrupts import HELD
from rift_core.memory import Permission
from rift_core.register_batches import RegisterTable
from rift_emulator import engine
from rift_emulator.errors import check, ffi, lib, new_error, raise_error
from rift_emulator.probe import GPA_BITS, SLOTS, capabilities_of, exit_kinds_of
from rift_emulator.vcpu import EmulatorVCpu

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rift_core.exits import ExitHandler, ExitKind
    from rift_core.memory import Gpa, MemoryRegion
    from rift_emulator import EmulatorConfig

_LAST = 0xFFFF_FFFF_FFFF_FFFF


def _builtin(isa: str) -> Any:
    return lib.rift_emulator_builtin_binding(isa.encode())


def builtin_binding(isa: str) -> Binding:
    """The binding for an ISA that is compiled in."""
    return Binding("emulator", isa, native=int(ffi.cast("uintptr_t", _builtin(isa))), owner=lib)


def learn_binding(isa: str) -> None:
    """Have a binding look whether the engine is the one that it was made for.

    :raises HypervisorError: it is not.
    """
    error = new_error()
    check(lib.rift_emulator_binding_learn(_builtin(isa), error), error)


class EmulatorVm:
    """A VM. See ``rift_core.backend.Vm`` for the contract.

    :param binding: where the emulator meets the ISA; ``native`` is the address of a ``struct rift_emulator_binding``.
    :raises HypervisorError: there is no engine, or not the right one; nothing is left open.
    """

    def __init__(self, config: EmulatorConfig, binding: Binding) -> None:
        self.native: Any = None
        self.config = config
        self.lock = threading.RLock()  # regions and the list of vCPUs; any thread may change them
        self._binding = binding
        self._forked = False
        self._error = new_error()
        self._vcpus: set[EmulatorVCpu] = set()
        self._regions: dict[int, Any] = {}  # buffers that the guest sees, by guest-physical address
        self._retired: list[Any] = []  # buffers that a native handler may still hold a pointer into
        self._handlers: list[object] = []
        engine.load()
        native_binding = ffi.cast("struct rift_emulator_binding *", binding.native)
        if not lib.rift_emulator_binding_check(native_binding):
            text = f"it is of version {native_binding.version}, not of this backend's"
            raise HypervisorError("rift_emulator_binding", 0, text)
        check(lib.rift_emulator_binding_learn(native_binding, self._error), self._error)
        self.isa = ffi.string(native_binding.isa).decode()
        self._capabilities = capabilities_of(config, self.isa)
        self._exit_kinds = exit_kinds_of(config, self.isa)
        count = native_binding.register_count
        self.registers = RegisterTable(ffi, native_binding.registers, count)
        saved = {n: at for n, at in self.registers.ids.items() if not native_binding.registers[at].read_only}
        self.state_layout = (tuple(saved), [(self.registers.bits[at] + 7) // 8 for at in saved.values()])
        with HELD, WHOLE:
            native = lib.rift_emulator_vm_create(
                native_binding,
                lib.RIFT_EMULATOR_SYSTEM_REGISTER_EXITS if config.system_register_exits else 0,
                GPA_BITS,
                config.code_buffer,
                SLOTS,
                self._error,
            )
            if native == ffi.NULL:
                raise_error(self._error)
            self.native = native
            _vms.add(self)

    def __del__(self) -> None:
        if getattr(self, "native", None) is not None and not self._forked:
            self.close()

    @property
    def capabilities(self) -> frozenset[str]:
        """The same on every host; see the README of this distribution."""
        return self._capabilities

    @property
    def exit_kinds(self) -> frozenset[ExitKind]:
        """Exits that can occur here."""
        return self._exit_kinds

    def map_memory(self, region: MemoryRegion) -> None:
        """Make a region visible to the guest, from any thread.

        :raises HypervisorError: misaligned, beyond the address space, or overlapping; nothing has changed then.
        """
        writable = Permission.WRITE in region.permissions
        hint = f"guest-physical {region.guest_address:#x}-{region.end:#x} {region.name}".rstrip()
        buffer = region.host
        if writable and buffer.readonly:
            raise HypervisorError("uc_mem_map_ptr", 0, f"{hint}: the host buffer is read-only")
        # Not ffi.from_buffer: collected as part of a cycle, it releases a memoryview that is gone already.
        address = ffi.cast("void *", buffer_address(buffer))
        with HELD, self.lock:
            self._check_open()
            status = lib.rift_emulator_vm_map(
                self.native, region.guest_address, address, buffer.nbytes, writable, self._error
            )
            check(status, self._error, hint)
            self._regions[region.guest_address] = buffer

    def unmap_memory(self, guest_address: Gpa) -> None:
        """Take the region that starts there from the guest, from any thread.

        :raises HypervisorError: none starts there.
        """
        with HELD, self.lock:
            self._check_open()
            status = lib.rift_emulator_vm_unmap(self.native, guest_address, self._error)
            check(status, self._error, f"guest-physical {guest_address:#x}")
            buffer = self._regions.pop(guest_address)
            if status:
                self._retired.append(buffer)
            elif self._retired and lib.rift_emulator_vm_quiet(self.native):
                self._retired.clear()

    def flush_translations(self) -> None:
        """Make every vCPU see page-table entries that the host has changed, from any thread."""
        with self.lock:
            self._check_open()
            lib.rift_emulator_vm_flush(self.native)

    def code_changed(self, guest_address: Gpa, size: int) -> None:
        """Make every vCPU see instructions that the host has written, from any thread.

        Each looks at all of its translated code; it does so whenever it comes back from the host anyway.
        """
        del guest_address, size
        with self.lock:
            self._check_open()
            lib.rift_emulator_vm_code_changed(self.native)

    @contextlib.contextmanager
    def atomic(self) -> Iterator[None]:
        """No vCPU is in the guest for the ``with`` block, from any thread. See ``rift_core.backend.Vm.atomic``."""
        with self.lock:
            self._check_open()
            native = self.native
        lib.rift_emulator_vm_take(native)
        try:
            yield
        finally:
            lib.rift_emulator_vm_give(native)

    def install(self, handler: ExitHandler) -> None:
        """Install ``handler.native``; before the first vCPU is created.

        :raises HypervisorError: another ABI version, or an overlap.
        :raises StateError: there is a vCPU already.
        """
        native = handler.native
        if native is None:
            return
        where = handler.where if handler.where is not None else range(0, _LAST + 1)
        if where.step != 1 or where.start < 0 or where.stop > _LAST + 1 or where.start >= where.stop:
            text = f"{where} of exit handler {handler.name!r} is no range of addresses"
            raise HypervisorError("rift_dispatch_add", 0, text)
        version = getattr(native, "version", lib.rift_emulator_abi_version())
        if version != lib.rift_emulator_abi_version():
            raise HypervisorError(
                "rift_dispatch_add",
                0,
                f"exit handler {handler.name!r} is compiled for version {version} of rift_abi.h, this backend for "
                f"{lib.rift_emulator_abi_version()}",
            )
        with self.lock:
            self._check_open()
            if self._vcpus:
                raise StateError("native exit handlers must be installed before the first vCPU is created")
            for kind in sorted(handler.kinds):
                status = lib.rift_emulator_vm_install(
                    self.native, kind, where.start, where.stop - 1, native.address, native.context, handler.fallback,
                    self._error,
                )  # fmt: skip
                check(status, self._error, f"exit handler {handler.name!r}, {kind.name}")
            self._handlers.append(native)

    def create_vcpu(self, index: int) -> EmulatorVCpu:
        """A vCPU owned by the calling thread."""
        with HELD, self.lock, WHOLE:
            self._check_open()
            vcpu = EmulatorVCpu(self, index)
            self._vcpus.add(vcpu)
            return vcpu

    def close(self) -> None:
        """Release everything, vCPUs that are still open included. Twice is harmless.

        :raises StateError: a thread is in the guest.
        """
        with HELD, self.lock, WHOLE:
            if self.native is None or self._forked:
                return
            for vcpu in list(self._vcpus):
                vcpu.close()
            lib.rift_emulator_vm_close(self.native)
            self.native = None
            _vms.discard(self)
            self._regions.clear()
            self._retired.clear()
            self._handlers.clear()

    def forget_vcpu(self, vcpu: EmulatorVCpu) -> None:
        """A vCPU was closed; called by it."""
        self._vcpus.discard(vcpu)

    def abandon(self) -> None:
        """Let go in a forked child: what it has inherited is a copy of the parent's engine, in whatever state."""
        self._forked = True
        self.lock = threading.RLock()  # another thread may have held the old one
        for vcpu in self._vcpus:
            vcpu.abandon()

    def _check_open(self) -> None:
        if self._forked:
            raise ForkedMachineError("this VM belongs to the parent of this process")
        if self.native is None:
            raise StateError("the VM is closed")


_vms: weakref.WeakSet[EmulatorVm] = weakref.WeakSet()


def _abandon_all() -> None:
    for vm in list(_vms):
        vm.abandon()
    _vms.clear()


os.register_at_fork(after_in_child=_abandon_all)
