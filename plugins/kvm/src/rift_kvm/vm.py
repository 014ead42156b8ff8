"""Virtual machines: memory slots, native handlers, vCPUs, and what becomes of them at fork."""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import nullcontext
from functools import cache
from typing import TYPE_CHECKING, Any

from rift_core.backend import Binding
from rift_core.errors import ForkedMachineError, HypervisorError, StateError
from rift_core.forks import WHOLE
from rift_core.host_memory import buffer_address
from rift_core.interrupts import HELD
from rift_core.memory import Permission
from rift_core.register_batches import RegisterTable
from rift_kvm.errors import check, ffi, lib, new_error, raise_error
from rift_kvm.vcpu import KvmVCpu

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from rift_core.backend import VmSpec
    from rift_core.exits import ExitHandler, ExitKind
    from rift_core.memory import Gpa, MemoryRegion
    from rift_kvm import KvmConfig

_DESCRIPTION_BYTES = 64 * 1024
_LAST = 0xFFFF_FFFF_FFFF_FFFF


@cache
def host_binding() -> Binding:
    """The binding for this machine's own CPU."""
    native = lib.rift_kvm_host_binding()
    isa = ffi.string(native.isa).decode()
    return Binding("kvm", isa, native=int(ffi.cast("uintptr_t", native)), owner=lib)


def create_vm(config: KvmConfig, spec: VmSpec) -> KvmVm:
    """An empty VM for ``spec``.

    :raises HypervisorError: KVM refused; nothing is left open.
    """
    from rift_kvm.probe import probe

    result = probe(config)
    return KvmVm(
        config,
        spec.binding,
        gpa_bits=result.limits.gpa_bits,
        capabilities=result.capabilities,
        exit_kinds=result.exit_kinds,
    )


class _Shared:
    """What is the same for all VMs of one device and binding: made once a process."""

    def __init__(self, device: str, binding: Any, ioctl: Any) -> None:
        error = new_error()
        if not lib.rift_kvm_binding_check(binding):
            raise HypervisorError("rift_kvm_binding", 0, f"it is of version {binding.version}, not of this backend's")
        self.registers = RegisterTable(ffi, binding.registers, binding.register_count)
        descriptor = check(lib.rift_kvm_device_open(device.encode(), error), error)
        try:
            size = ffi.new("size_t *", _DESCRIPTION_BYTES)
            buffer = ffi.new("char[]", _DESCRIPTION_BYTES)
            check(lib.rift_kvm_describe(descriptor, binding, ioctl, buffer, size, error), error)
        finally:
            lib.rift_kvm_device_close(descriptor)
        self.size = int(size[0])
        self.description = ffi.new("char[]", max(self.size, 1))
        ffi.memmove(self.description, buffer, self.size)


_shared: dict[tuple[str, int], _Shared] = {}


def _share(device: str, binding: Binding, ioctl: Any) -> _Shared:
    key = (device, binding.native)
    shared = _shared.get(key)
    if shared is None:
        shared = _Shared(device, ffi.cast("struct rift_kvm_binding *", binding.native), ioctl)
        if ioctl == ffi.NULL:
            _shared[key] = shared
    return shared


def description(device: str, binding: Binding) -> bytes:
    """What ``binding`` says of every VM on ``device``; on x86-64 a ``struct kvm_cpuid2``.

    :raises HypervisorError: KVM refused.
    """
    shared = _share(device, binding, ffi.NULL)
    return bytes(ffi.buffer(shared.description, shared.size))


def _place(region: MemoryRegion) -> str:
    return f"guest-physical {region.guest_address:#x}-{region.end:#x} {region.name}".rstrip()


class KvmVm:
    """A VM. See ``rift_core.backend.Vm`` for the contract.

    :param binding: where KVM meets the ISA; ``native`` is the address of a ``struct rift_kvm_binding``.
    :param ioctl: address of a ``rift_kvm_ioctl_fn`` to call instead of ioctl(2); for tests.
    :raises HypervisorError: KVM refused; nothing is left open.
    """

    def __init__(
        self,
        config: KvmConfig,
        binding: Binding,
        *,
        gpa_bits: int,
        capabilities: frozenset[str],
        exit_kinds: frozenset[ExitKind],
        ioctl: int = 0,
    ) -> None:
        self.native: Any = None
        self.config = config
        self.lock = threading.RLock()  # slots and the list of vCPUs; any thread may change them
        self._capabilities = capabilities
        self._exit_kinds = exit_kinds
        self._binding = binding
        self._forked = False
        self._error = new_error()
        self._vcpus: set[KvmVCpu] = set()
        self._regions: dict[int, Any] = {}  # buffers that the guest sees, by guest-physical address
        self._retired: list[Any] = []  # buffers that a native handler may still hold a pointer into
        self._handlers: list[object] = []
        function = ffi.cast("rift_kvm_ioctl_fn *", ioctl)
        shared = _share(config.device, binding, function)
        self.registers = shared.registers
        self._shared = shared
        check(lib.rift_kvm_signal_install(config.kick_signal, self._error), self._error)
        with HELD, WHOLE:
            native = lib.rift_kvm_vm_create(
                config.device.encode(),
                ffi.cast("struct rift_kvm_binding *", binding.native),
                (lib.RIFT_KVM_SYSTEM_REGISTER_EXITS if "user_msr_exit" in capabilities else 0)
                | (0 if "tsc_offset" in capabilities else lib.RIFT_KVM_HOST_COUNTER),
                gpa_bits,
                function,
                shared.description,
                shared.size,
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
        buffer = region.host
        if writable and buffer.readonly:
            raise HypervisorError("KVM_SET_USER_MEMORY_REGION", 0, f"{_place(region)}: the host buffer is read-only")
        # Not ffi.from_buffer: collected as part of a cycle, it releases a memoryview that is gone already.
        address = ffi.cast("void *", buffer_address(buffer))
        with HELD, self.lock, WHOLE:  # the first slot starts what makes the first vCPU
            self._check_open()
            status = lib.rift_kvm_vm_map(
                self.native, region.guest_address, address, buffer.nbytes, writable, self._error
            )
            if status < 0:
                raise_error(self._error, _place(region))
            self._regions[region.guest_address] = buffer

    def unmap_memory(self, guest_address: Gpa) -> None:
        """Take the region that starts there from the guest, from any thread.

        :raises HypervisorError: none starts there.
        """
        with HELD, self.lock:
            self._check_open()
            status = lib.rift_kvm_vm_unmap(self.native, guest_address, self._error)
            check(status, self._error, f"guest-physical {guest_address:#x}")
            buffer = self._regions.pop(guest_address)
            if status:
                self._retired.append(buffer)
            elif self._retired and lib.rift_kvm_vm_quiet(self.native):
                self._retired.clear()

    def flush_translations(self) -> None:
        """Make every vCPU see page-table entries that the host has changed, from any thread."""
        with self.lock:
            self._check_open()
            check(lib.rift_kvm_vm_flush(self.native, self._error), self._error)

    def code_changed(self, guest_address: Gpa, size: int) -> None:
        """Clean the data caches and drop the instruction caches of the host's CPUs; on x86 they are coherent."""
        with self.lock:
            self._check_open()
            lib.rift_kvm_vm_code_changed(self.native, guest_address, size)

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
        version = getattr(native, "version", lib.rift_kvm_abi_version())
        if version != lib.rift_kvm_abi_version():
            raise HypervisorError(
                "rift_dispatch_add",
                0,
                f"exit handler {handler.name!r} is compiled for version {version} of rift_abi.h, this backend for "
                f"{lib.rift_kvm_abi_version()}",
            )
        with self.lock:
            self._check_open()
            if self._vcpus:
                raise StateError("native exit handlers must be installed before the first vCPU is created")
            for kind in sorted(handler.kinds):
                status = lib.rift_kvm_vm_install(
                    self.native, kind, where.start, where.stop - 1, native.address, native.context, handler.fallback,
                    self._error,
                )  # fmt: skip
                if status < 0:
                    raise_error(self._error, f"exit handler {handler.name!r}, {kind.name}")
            self._handlers.append(native)

    def create_vcpu(self, index: int) -> KvmVCpu:
        """A vCPU owned by the calling thread."""
        with HELD, self.lock, WHOLE:
            self._check_open()
            vcpu = KvmVCpu(self, index)
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
            lib.rift_kvm_vm_close(self.native)
            self.native = None
            _vms.discard(self)
            self._regions.clear()
            self._retired.clear()
            self._handlers.clear()

    def forget_vcpu(self, vcpu: KvmVCpu) -> None:
        """A vCPU was closed; called by it."""
        self._vcpus.discard(vcpu)

    def settle(self) -> None:
        """Before a fork, with nobody in ``WHOLE``: what the background makes is there, for the child to let go of."""
        if self.native is not None and not self._forked:
            lib.rift_kvm_vm_settle(self.native)

    def abandon(self) -> None:
        """Let go in a forked child: the descriptors only. Held open they would keep the parent's VM alive."""
        self._forked = True
        self.lock = threading.RLock()  # another thread may have held the old one
        for vcpu in self._vcpus:
            vcpu.abandon()
        if self.native is not None:
            lib.rift_kvm_vm_forget(self.native)

    def _check_open(self) -> None:
        if self._forked:
            raise ForkedMachineError("this VM belongs to the parent of this process")
        if self.native is None:
            raise StateError("the VM is closed")


_vms: weakref.WeakSet[KvmVm] = weakref.WeakSet()


def _settle_all() -> None:
    for vm in list(_vms):
        vm.settle()


def _abandon_all() -> None:
    for vm in list(_vms):
        vm.abandon()
    _vms.clear()


WHOLE.before_fork(_settle_all)
os.register_at_fork(after_in_child=_abandon_all)
