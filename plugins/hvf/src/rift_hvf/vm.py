"""The virtual machine: memory, native handlers, vCPUs, and what becomes of them at fork."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from rift_core.backend import Binding
from rift_core.errors import ForkedMachineError, HypervisorError, StateError
from rift_core.forks import WHOLE
from rift_core.host_memory import buffer_address
from rift_core.interrupts import HELD
from rift_core.memory import Permission
from rift_hvf.errors import check, ffi, lib, new_error, raise_error
from rift_hvf.framework import Framework, open_framework
from rift_hvf.vcpu import HvfVCpu

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rift_core.backend import VmSpec
    from rift_core.exits import ExitHandler, ExitKind
    from rift_core.memory import Gpa, MemoryRegion
    from rift_hvf import HvfConfig

_LAST = 0xFFFF_FFFF_FFFF_FFFF
_READ, _WRITE, _EXECUTE = 1, 2, 4  # hv_memory_flags_t


def make_binding(isa: str) -> Binding:
    """The binding for ``isa``, whether or not a framework for it is here."""
    native = lib.rift_hvf_binding_x86_64() if isa == "x86_64" else lib.rift_hvf_binding_aarch64()
    return Binding("hvf", isa, native=int(ffi.cast("uintptr_t", native)), owner=lib)


def create_vm(config: HvfConfig, spec: VmSpec) -> HvfVm:
    """The process's VM for ``spec``.

    :raises HypervisorError: there is one already, or the framework refused; nothing is left then.
    """
    from rift_hvf.probe import probe

    result = probe(config)
    framework = open_framework(config.path)
    if spec.binding.native != int(ffi.cast("uintptr_t", framework.binding)):
        raise HypervisorError("hv_vm_create", 0, f"the framework here runs {framework.isa}, not {spec.isa}")
    return HvfVm(
        config,
        framework,
        page_size=result.limits.page_size,
        gpa_bits=result.limits.gpa_bits,
        capabilities=result.capabilities,
        exit_kinds=result.exit_kinds,
    )


class HvfVm:
    """A VM. See ``rift_core.backend.Vm`` for the contract.

    :raises HypervisorError: the framework refused; nothing is left open.
    """

    def __init__(
        self,
        config: HvfConfig,
        framework: Framework,
        *,
        page_size: int,
        gpa_bits: int,
        capabilities: frozenset[str],
        exit_kinds: frozenset[ExitKind],
    ) -> None:
        self.native: Any = None
        self.config = config
        self.lock = threading.RLock()  # regions and the list of vCPUs; any thread may change them
        self.registers = framework.registers
        self._capabilities = capabilities
        self._exit_kinds = exit_kinds
        self._forked = False
        self._error = new_error()
        self._vcpus: set[HvfVCpu] = set()
        self._regions: dict[int, Any] = {}  # buffers that the guest sees, by guest-physical address
        self._retired: list[Any] = []  # buffers that a vCPU may still hold a pointer into
        self._handlers: list[object] = []
        flags = lib.RIFT_HVF_SYSTEM_REGISTER_EXITS if "user_msr_exit" in capabilities else 0
        with HELD, WHOLE:
            native = lib.rift_hvf_vm_create(framework.native, flags, page_size, gpa_bits, self._error)
            if native == ffi.NULL:
                raise_error(self._error)
            self.native = native
            _vms.add(self)

    def __del__(self) -> None:
        if getattr(self, "native", None) is not None and not self._forked:
            self.close()

    @property
    def capabilities(self) -> frozenset[str]:
        """What was measured to work here; see the README of this distribution."""
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
            raise HypervisorError("hv_vm_map", 0, f"{hint}: the host buffer is read-only")
        flags = _READ | (_WRITE if writable else 0) | (_EXECUTE if Permission.EXECUTE in region.permissions else 0)
        # Not ffi.from_buffer: collected as part of a cycle, it releases a memoryview that is gone already.
        address = ffi.cast("void *", buffer_address(buffer))
        with HELD, self.lock:
            self._check_open()
            status = lib.rift_hvf_vm_map(self.native, region.guest_address, address, buffer.nbytes, flags, self._error)
            check(status, self._error, hint)
            self._regions[region.guest_address] = buffer

    def unmap_memory(self, guest_address: Gpa) -> None:
        """Take the region that starts there from the guest, from any thread.

        :raises HypervisorError: none starts there.
        """
        with HELD, self.lock:
            self._check_open()
            status = lib.rift_hvf_vm_unmap(self.native, guest_address, self._error)
            check(status, self._error, f"guest-physical {guest_address:#x}")
            buffer = self._regions.pop(guest_address)
            if status:
                self._retired.append(buffer)
            elif self._retired and lib.rift_hvf_vm_quiet(self.native):
                self._retired.clear()

    def flush_translations(self) -> None:
        """Make every vCPU see page-table entries that the host has changed, from any thread."""
        with self.lock:
            self._check_open()
            lib.rift_hvf_vm_flush(self.native)

    def code_changed(self, guest_address: Gpa, size: int) -> None:
        """Make every vCPU fetch what the host has written there, from any thread."""
        with self.lock:
            self._check_open()
            lib.rift_hvf_vm_code_changed(self.native, guest_address, size)

    def atomic(self) -> AbstractContextManager[None]:
        """Nothing: the CPU's atomic instructions work across host and guest."""
        return nullcontext()

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
        version = getattr(native, "version", lib.rift_hvf_abi_version())
        if version != lib.rift_hvf_abi_version():
            raise HypervisorError(
                "rift_dispatch_add",
                0,
                f"exit handler {handler.name!r} is compiled for version {version} of rift_abi.h, this backend for "
                f"{lib.rift_hvf_abi_version()}",
            )
        with self.lock:
            self._check_open()
            if self._vcpus:
                raise StateError("native exit handlers must be installed before the first vCPU is created")
            for kind in sorted(handler.kinds):
                status = lib.rift_hvf_vm_install(
                    self.native, kind, where.start, where.stop - 1, native.address, native.context, handler.fallback,
                    self._error,
                )  # fmt: skip
                check(status, self._error, f"exit handler {handler.name!r}, {kind.name}")
            self._handlers.append(native)

    def create_vcpu(self, index: int) -> HvfVCpu:
        """A vCPU owned by the calling thread."""
        with HELD, self.lock, WHOLE:
            self._check_open()
            vcpu = HvfVCpu(self, index)
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
            lib.rift_hvf_vm_close(self.native)
            self.native = None
            _vms.discard(self)
            self._regions.clear()
            self._retired.clear()
            self._handlers.clear()

    def forget_vcpu(self, vcpu: HvfVCpu) -> None:
        """A vCPU was closed; called by it."""
        self._vcpus.discard(vcpu)

    def abandon(self) -> None:
        """Let go in a forked child, which has no VM."""
        self._forked = True
        self.lock = threading.RLock()  # another thread may have held the old one
        for vcpu in self._vcpus:
            vcpu.abandon()

    def _check_open(self) -> None:
        if self._forked:
            raise ForkedMachineError("this VM belongs to the parent of this process")
        if self.native is None:
            raise StateError("the VM is closed")


_vms: weakref.WeakSet[HvfVm] = weakref.WeakSet()


def _abandon_all() -> None:
    for vm in list(_vms):
        vm.abandon()
    _vms.clear()
    lib.rift_hvf_forget_all()


os.register_at_fork(after_in_child=_abandon_all)
