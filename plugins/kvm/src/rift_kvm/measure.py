"""Experiments: small guests that show what works here, which may be less than what the CPU has.

Each experiment starts a vCPU in a known state and looks at how it comes out. One timer bounds them all,
since an instruction that KVM does not expect can keep KVM_RUN busy for ever.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rift_core.errors import HypervisorError
from rift_core.exits import Exit, ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from rift_kvm.vcpu import KvmVCpu
    from rift_kvm.vm import KvmVm

TIME_LIMIT = 15.0
"""Seconds for all experiments together; they take milliseconds, tenths of a second on an emulated CPU."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the experiments found: see ``CpuFeatures`` and ``ProbeResult``."""

    names: frozenset[str] = frozenset()
    capabilities: frozenset[str] = frozenset()
    page_sizes: tuple[int, ...] = ()
    xcr0: int = 0
    id_registers: Mapping[str, int] = field(default_factory=dict)


class Laboratory:
    """A VM with one vCPU, for experiments; ``reset`` brings the guest's memory back to its first state."""

    def __init__(self, vm: KvmVm, memory: mmap.mmap, reset: Callable[[], None]) -> None:
        self.vm = vm
        self.reset = reset
        self.expired = False
        self.vcpu: KvmVCpu = vm.create_vcpu(0)
        vm.map_memory(MemoryRegion(Gpa(0), memoryview(memory), Permission.READ | Permission.WRITE))

    def expire(self) -> None:
        """End the experiment that is running, and all that follow."""
        self.expired = True
        self.vcpu.kick()

    def renew(self) -> None:
        """Go on with a fresh vCPU: after debugging, kvm_pvm leaves odd traces in one."""
        self.vcpu.close()
        self.vcpu = self.vm.create_vcpu(0)
        if self.expired:
            self.vcpu.kick()

    def go_on(self) -> Exit | None:
        """Run until an exit; None when KVM refuses or time is over."""
        try:
            while not self.expired:
                exit = self.vcpu.run()
                if exit.kind is not ExitKind.INTERRUPTED:
                    return exit
        except HypervisorError:
            pass
        return None

    def holds(self, experiment: Callable[[], bool]) -> bool:
        """Its outcome; what KVM refuses does not work."""
        try:
            return experiment()
        except HypervisorError:
            return False
        finally:
            self.reset()

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """The time for all experiments; the vCPU is closed afterwards."""
        timer = threading.Timer(TIME_LIMIT, self.expire)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            self.vcpu.close()

    @contextlib.contextmanager
    def page(self, address: int, permissions: Permission) -> Iterator[mmap.mmap]:
        """One more page of guest-physical memory."""
        page = mmap.mmap(-1, mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.vm.map_memory(MemoryRegion(Gpa(address), memoryview(page), permissions))
        try:
            yield page
        finally:
            self.vm.unmap_memory(Gpa(address))

    @contextlib.contextmanager
    def unbacked_page(self, address: int) -> Iterator[None]:
        """A page of guest-physical memory that the host has taken away from itself."""
        from rift_core.host_memory import buffer_address

        with self.page(address, Permission.READ | Permission.WRITE) as page:
            libc = ctypes.CDLL(None)
            where, size = ctypes.c_void_p(buffer_address(memoryview(page))), ctypes.c_size_t(mmap.PAGESIZE)
            libc.mprotect(where, size, 0)
            try:
                yield
            finally:
                libc.mprotect(where, size, 3)
