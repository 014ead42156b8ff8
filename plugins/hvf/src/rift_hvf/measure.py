"""Runs small guests to learn what works here: what the documentation leaves open is looked at, not assumed.

Each experiment starts a vCPU in a known state and looks at how it comes out; what an experiment is, is the ISA's
business (:mod:`rift_hvf.guest_x86_64`, :mod:`rift_hvf.guest_aarch64`). None may take longer than a second: it is
over in microseconds, or never.
"""

from __future__ import annotations

import mmap
import threading
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from rift_core.errors import HypervisorError, RiftError
from rift_core.exits import Exit, ExitKind
from rift_core.memory import Gpa, MemoryRegion, Permission

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rift_hvf.vcpu import HvfVCpu
    from rift_hvf.vm import HvfVm

TIME_LIMIT = 1.0
"""Seconds for one experiment."""

MEMORY_SIZE = 0x2_0000
"""Bytes of the guest's memory, from guest-physical 0 on."""

PAGE = 0x4000
"""Alignment of regions: enough for either framework."""

READ_ONLY = 0x20_0000
"""Guest-physical address of a region that experiments add; guests map it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What the experiments found."""

    names: frozenset[str]
    capabilities: frozenset[str]
    page_sizes: tuple[int, ...]
    xcr0: int = 0
    id_registers: Mapping[str, int] = field(default_factory=dict)


class Guest(Protocol):
    """An ISA's guest for experiments, in :data:`MEMORY_SIZE` bytes that are mapped one to one."""

    @property
    def capabilities(self) -> Mapping[str, Callable[[Laboratory], bool]]:
        """The experiments, by the capability that each shows."""

    code: int  # where code is put
    program_counter: str

    def fill(self, memory: memoryview) -> None:
        """Fresh page tables, vectors and whatever else code needs."""

    def registers(self) -> dict[str, int]:
        """What a vCPU starts with, in front of the code, in supervisor mode."""

    def halts(self, laboratory: Laboratory, exit: Exit | None, address: int) -> bool:
        """Whether the guest came to the end of the experiment at ``address``."""

    def end(self) -> bytes:
        """The instruction that ends an experiment with an exit."""

    def cpu(self, laboratory: Laboratory) -> Measured:
        """What the CPU has, and the capabilities that follow from it; not those of :attr:`capabilities`."""


class Laboratory:
    """A VM with one guest in it."""

    def __init__(self, vm: HvfVm, guest: Guest) -> None:
        self.vm = vm
        self.guest = guest
        self._expired = False
        whole = mmap.mmap(-1, MEMORY_SIZE + PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.memory = aligned(whole, PAGE)[:MEMORY_SIZE]
        self.reset()
        self.vcpu: HvfVCpu = vm.create_vcpu(0)
        permissions = Permission.READ | Permission.WRITE | Permission.EXECUTE
        vm.map_memory(MemoryRegion(Gpa(0), self.memory, permissions))

    def reset(self) -> None:
        """The memory as it was at first."""
        self.memory[:] = bytes(MEMORY_SIZE)
        self.guest.fill(self.memory)

    def store(self, address: int, data: bytes) -> None:
        """Put bytes into the guest, where it may also fetch them from."""
        self.memory[address : address + len(data)] = data
        self.vm.code_changed(Gpa(address), len(data))

    def number(self, address: int) -> int:
        """8 bytes of the guest's memory."""
        return int.from_bytes(self.memory[address : address + 8], "little")

    def expire(self) -> None:
        """End the experiment that is running."""
        self._expired = True
        self.vcpu.kick()

    def renew(self) -> None:
        """Go on with a fresh vCPU: nothing of the experiment before must be left."""
        self.vcpu.close()
        self.vcpu = self.vm.create_vcpu(0)

    def prepare(self, code: bytes, **registers: int) -> None:
        """Put ``code`` in place and the vCPU in front of it."""
        self.store(self.guest.code, code + self.guest.end())
        self.vcpu.write_registers({**self.guest.registers(), **registers})

    def go_on(self) -> Exit | None:
        """Run until an exit; None when the hypervisor refuses or time is over."""
        self._expired = False
        timer = threading.Timer(TIME_LIMIT, self.expire)
        timer.daemon = True
        timer.start()
        try:
            while not self._expired:
                exit = self.vcpu.run()
                if exit.kind is not ExitKind.INTERRUPTED:
                    return exit
        except HypervisorError:
            pass
        finally:
            timer.cancel()
            timer.join()
        return None

    def register(self, name: str) -> int:
        """One register."""
        return self.vcpu.read_registers((name,))[name]

    def pc(self) -> int:
        """Where the guest stands."""
        return self.register(self.guest.program_counter)

    def attempt(self, code: bytes, **registers: int) -> Exit | None:
        """Run ``code`` from the start."""
        self.prepare(code, **registers)
        return self.go_on()

    def runs(self, code: bytes, **registers: int) -> bool:
        """Whether ``code`` runs through, to the end behind it."""
        return self.guest.halts(self, self.attempt(code, **registers), self.guest.code + len(code))

    def is_read_only(self, code: bytes, value: int, size: int, **registers: int) -> bool:
        """Whether ``code``, which stores to a read-only region at :data:`READ_ONLY`, exits and changes nothing."""
        page = aligned(mmap.mmap(-1, 2 * PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS), PAGE)[:PAGE]
        self.vm.map_memory(MemoryRegion(Gpa(READ_ONLY), page, Permission.READ))
        try:
            exit = self.attempt(code, **registers)
            if exit is None or exit.kind is not ExitKind.MMIO or page[:8] != bytes(8):
                return False
            return (exit.address, exit.size, exit.value) == (READ_ONLY, size, value)
        finally:
            self.vm.unmap_memory(Gpa(READ_ONLY))

    def holds(self, experiment: Callable[[Laboratory], bool]) -> bool:
        """The experiment's answer, on a fresh vCPU; no, if the hypervisor refuses something."""
        try:
            self.renew()
            return experiment(self)
        except RiftError:
            return False
        finally:
            self.reset()
            self.vm.flush_translations()


def aligned(memory: mmap.mmap, page: int) -> memoryview:
    """The part of a mapping that begins at a multiple of ``page``."""
    from rift_core.host_memory import buffer_address

    return memoryview(memory)[-buffer_address(memory) % page :]


def measure(vm: HvfVm, guest: Guest) -> Measured | None:
    """All experiments, or None when not even the smallest guest runs.

    ``vm`` is empty, and of no use afterwards.
    """
    laboratory = Laboratory(vm, guest)
    try:
        if not laboratory.runs(b""):
            return None
        cpu = guest.cpu(laboratory)
        capabilities = {name for name, experiment in guest.capabilities.items() if laboratory.holds(experiment)}
        return replace(cpu, capabilities=cpu.capabilities | capabilities)
    finally:
        laboratory.vcpu.close()
