"""A bare virtual machine for conformance tests: a backend's ``Vm`` with page tables that an ISA plugin made.

Guest-virtual and guest-physical addresses are the same. Beside the parts below there is the doorbell page,
mapped, with nothing behind it.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rift_core import doorbell
from rift_core.errors import AddressError
from rift_core.exits import Exit, ExitKind
from rift_core.guest_memory import GuestMemory
from rift_core.host_memory import HostMemory
from rift_core.isa import Area, EntryState
from rift_core.memory import Caching, Gpa, Gva, Mapping, MemoryRegion, Permission
from rift_core.testing.guests import DONE
from rift_core.testing.tools import plugin_info, plugin_module, probe_backend
from rift_core.testing.vm import SECONDS, open_vm, plugins_of, run_to_exit

if TYPE_CHECKING:
    from collections.abc import Callable

    import pluggy

    from rift_core.backend import ProbeResult, VCpu
    from rift_core.isa import AreaRequest, Isa, Privilege
    from rift_core.memory import AddressSpace
    from rift_core.testing.guests import Guests

RAM = 0x10_0000
CODE, CODE_SIZE = 0x10_0000, 0x2_0000  # read, execute
DATA, DATA_SIZE = 0x12_0000, 0x1_0000  # read, write
READ_ONLY = 0x14_0000  # one page
UNMAPPED = 0x14_8000  # memory is there, no page-table entry
USER_CODE, USER_DATA = 0x15_0000, 0x16_0000  # 64 KiB each
TABLES, TABLES_SIZE = 0x20_0000, 0x8_0000
AREAS, RAM_SIZE = 0x30_0000, 0x70_0000  # the ISA's own, and stacks
EXTRA, EXTRA_SIZE = 0x1000_0000, 0x10_0000
"""Mapped in the page tables, without memory: for regions that a test adds."""

STACK_SIZE = 0x4000

_R, _W, _X, _U = Permission.READ, Permission.WRITE, Permission.EXECUTE, Permission.USER


class Bench:
    """One VM. Each vCPU belongs to the thread that calls :meth:`vcpu`, which also closes it."""

    def __init__(self, backend: object, isa: str, guests: Guests) -> None:
        self.guests = guests
        self.name, probe = probe_backend(backend)
        self.probe = probe.for_isa(isa)
        self.isa_name = isa
        self.page = self.probe.limits.page_size  # of regions
        self.isa, self._manager = _load_isa(backend, isa, self.probe)
        self.vm = open_vm(self._manager, backend, isa, max_vcpus=8)
        self._entries: dict[int, dict[str, int]] = {}
        self._vcpus: list[VCpu] = []
        self._next_area = AREAS
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def _build(self) -> None:
        self.memory = GuestMemory()
        self.ram = HostMemory(RAM_SIZE, "bench")
        region = MemoryRegion(Gpa(RAM), self.ram.view, _R | _W | _X, "ram")
        self.memory.add(region)
        self.vm.map_memory(region)
        tables = MemoryRegion(Gpa(TABLES), self.memory.view(TABLES, TABLES_SIZE), _R | _W, "tables")
        mappings = [
            _identity(CODE, CODE_SIZE, _R | _X),
            _identity(DATA, DATA_SIZE, _R | _W),
            _identity(READ_ONLY, 0x1000, _R),
            _identity(USER_CODE, 0x1_0000, _R | _X | _U),
            _identity(USER_DATA, 0x1_0000, _R | _W | _U),
            _identity(EXTRA, EXTRA_SIZE, _R | _W),
            Mapping(
                Gva(doorbell.DEFAULT_ADDRESS), Gpa(doorbell.DEFAULT_ADDRESS), 0x1000, _R | _W, "doorbell",
                Caching.DEVICE, 0x1000,
            ),
        ]  # fmt: skip
        self.space: AddressSpace = self._manager.hook.rift_configure_mmu(
            isa=self.isa, mappings=mappings, tables=tables, memory=self.memory
        )
        areas = {request.name: self._place(request) for request in self.isa.system_areas()}
        self.system = self.isa.install_system(areas, Gva(doorbell.DEFAULT_ADDRESS))

    def _place(self, request: AreaRequest) -> Area:
        size = -(-request.size // 0x1000) * 0x1000
        at = self._next_area
        self._next_area += size + 0x1000
        self.space.map(_identity(at, size, request.permissions))
        return Area(request.name, Gva(at), Gpa(at), self.memory.view(at, size))

    # -- guests ----------------------------------------------------------------------------------

    def load(self, code: bytes, at: int = CODE) -> int:
        """Put code there; returns its address."""
        self.memory[at : at + len(code)] = code
        return at

    def vcpu(self, code: bytes | None = None, *, index: int = 0, privilege: Privilege = "supervisor") -> VCpu:
        """A vCPU of the calling thread about to run ``code``; each index has its own place for it."""
        from rift_core.isa import AreaRequest

        entry = (USER_CODE if privilege == "user" else CODE) + index * 0x1000
        if code is not None:
            self.load(code, entry)
        user = _U if privilege == "user" else Permission.NONE
        requests = [*self.isa.thread_areas(privilege), AreaRequest("stack", STACK_SIZE, _R | _W | user)]
        areas = {request.name: self._place(request) for request in requests}
        state = EntryState(Gva(entry), Gva(areas["stack"].end), self.space.root, privilege)
        registers = self.isa.thread_registers(self.system, areas, state)
        vcpu = self.vm.create_vcpu(index)
        self._vcpus.append(vcpu)
        self._entries[index] = registers
        vcpu.write_registers(registers)
        return vcpu

    def begin_again(self, vcpu: VCpu) -> None:
        """Put a vCPU of :meth:`vcpu` back to where it began, as core does for the next run."""
        vcpu.drop_events()
        vcpu.write_registers(self._entries[vcpu.index])

    def run(self, vcpu: VCpu, reply: int | None = None) -> Exit:
        """Run until an exit; a stray interruption is passed over, a guest that hangs fails the test."""
        return run_to_exit(vcpu, reply)

    def finish(self, vcpu: VCpu, reply: int | None = None) -> None:
        """Run to the guest's end.

        :raises AssertionError: another exit came instead.
        """
        exit = self.run(vcpu, reply)
        if exit.kind is not ExitKind.MMIO or exit.address != DONE or not exit.is_write:
            raise AssertionError(f"the guest did not end: {self.describe(vcpu, exit)}")

    def describe(self, vcpu: VCpu, exit: Exit) -> str:
        """The exit, and the guest's fault if it reports one."""
        if exit.kind is ExitKind.MMIO and exit.address == doorbell.DEFAULT_ADDRESS + doorbell.FAULT:
            fault = self.isa.read_fault(vcpu, self, exit)
            if fault is not None:
                where = f", address {fault.address:#x}" if fault.address is not None else ""
                return f"{fault.name} at {fault.pc:#x}{where} ({fault.words})"
        return str(exit)

    def read_virtual(self, address: int, size: int) -> bytes:
        """Guest memory through its page tables."""
        data = b""
        while len(data) < size:
            at = address + len(data)
            walk = self.space.walk(Gva(at))
            if walk.physical is None:
                raise AddressError(f"{at:#x}: {walk.reason}")
            step = min(size - len(data), 0x1000 - at % 0x1000)
            data += bytes(self.memory.view(walk.physical, step))
        return data

    def number(self, address: int, size: int = 8) -> int:
        """A little-endian number in guest memory."""
        return int.from_bytes(self.memory.view(address, size), "little")

    def put(self, address: int, value: int, size: int = 8) -> None:
        """Store a little-endian number in guest memory."""
        self.memory[address : address + size] = value.to_bytes(size, "little")

    def close(self) -> None:
        """Close what the calling thread owns, then the VM."""
        for vcpu in self._vcpus:
            vcpu.close()
        self.vm.close()


class Worker:
    """A thread that owns a vCPU: runs ``function`` and keeps what it raises for :meth:`join`."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._error: BaseException | None = None
        self.result: Any = None
        self._thread = threading.Thread(target=self._run, name="conformance", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.result = self._function()
        except BaseException as error:
            self._error = error

    def join(self) -> Any:
        """What the function returned, or raised."""
        self._thread.join(SECONDS)
        if self._thread.is_alive():
            raise AssertionError(f"the thread did not end within {SECONDS:.0f} s")
        if self._error is not None:
            raise self._error
        return self.result


def _identity(address: int, size: int, permissions: Permission) -> Mapping:
    return Mapping(Gva(address), Gpa(address), size, permissions, largest_page=0x1000)


def _load_isa(backend: object, isa: str, probe: ProbeResult) -> tuple[Isa, pluggy.PluginManager]:
    module = plugin_module("isa", isa)
    if module is None:
        raise LookupError(f"no plugin for ISA {isa} is installed: the conformance suite needs its page tables")
    manager = plugins_of(backend, isa, module)
    info = plugin_info(module, "isa", isa)
    section = info.config() if info is not None else None
    made: Isa = manager.hook.rift_isa(config=section, features=probe.features)
    return made, manager
