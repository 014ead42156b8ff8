"""A bare machine for tests of supervisor mode: a VM with one vCPU whose tables the test itself writes, byte by byte.

What of it depends on the instruction set is in a module for each: :mod:`rift_core.testing.x86_64_machine` and
:mod:`rift_core.testing.aarch64_machine`.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from rift_core.host_memory import HostMemory
from rift_core.memory import Gpa, MemoryRegion, Permission
from rift_core.testing.tools import probe_backend
from rift_core.testing.vm import open_vm, plugins_of, run_to_exit

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rift_core.backend import VCpu
    from rift_core.exits import Exit, ExitHandler

SIZE = 0x40_0000
"""Bytes of memory, at guest-physical 0."""


class BareMachine(ABC):
    """One VM, one vCPU, 4 MiB of memory. ``vcpu`` belongs to the thread that made it.

    A subclass names its ``isa``, and fills the memory with tables and handlers in :meth:`build`.

    :param backend: the backend's plugin module.
    :param handlers: handlers of exits, all of them native.
    """

    isa: ClassVar[str]

    def __init__(self, backend: object, handlers: Iterable[ExitHandler] = ()) -> None:
        self.probe = probe_backend(backend)[1].for_isa(self.isa)
        self.vm = open_vm(plugins_of(backend, self.isa), backend, self.isa, max_vcpus=1)
        self.memory = HostMemory(SIZE, "machine")
        both = Permission.READ | Permission.WRITE | Permission.EXECUTE
        self.vm.map_memory(MemoryRegion(Gpa(0), self.memory.view, both, "ram"))
        self.build()
        for handler in handlers:
            self.vm.install(handler)
        self.vcpu: VCpu = self.vm.create_vcpu(0)

    def close(self) -> None:
        """Release it."""
        self.vcpu.close()
        self.vm.close()

    @abstractmethod
    def build(self) -> None:
        """Write page tables, vectors and handlers, before the vCPU exists."""

    # -- memory ----------------------------------------------------------------------------------

    def put(self, address: int, data: bytes) -> None:
        """Bytes into guest-physical memory."""
        self.memory.view[address : address + len(data)] = data

    def put64(self, address: int, value: int) -> None:
        """8 bytes."""
        self.put(address, struct.pack("<Q", value & (1 << 64) - 1))

    def get(self, address: int, size: int = 8) -> int:
        """A little-endian number."""
        return int.from_bytes(self.memory.view[address : address + size], "little")

    # -- running ---------------------------------------------------------------------------------

    def go(self, reply: int | None = None) -> Exit:
        """Run until an exit; a guest that hangs fails the test."""
        return run_to_exit(self.vcpu, reply)

    def register(self, name: str) -> int:
        """One register."""
        return self.vcpu.read_registers([name])[name]
