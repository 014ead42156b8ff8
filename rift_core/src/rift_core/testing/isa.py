"""What every ISA must do. A plugin's tests subclass :class:`IsaConformance` and provide one fixture::

    class TestMyIsa(IsaConformance):
        @pytest.fixture
        def plugin(self):
            return rift_my_isa          # the module, or object, with the hook implementations

No hypervisor is needed: an ISA computes bytes and register values. Page tables are compared with the model
of :mod:`rift_core.testing.paging_model`, a few lines of Python that know nothing of entries and levels;
hypothesis makes the cases.

An ISA that cannot express all memory types or permissions overrides ``expected_caching`` or
``expected_permissions``; one that needs more of its CPU than the defaults overrides the fixture ``features``.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, cast

import pluggy
import pytest

from rift_core import doorbell, hookspecs
from rift_core.backend import CpuFeatures
from rift_core.exits import Exit, ExitKind
from rift_core.isa import GuestFault, ResultType
from rift_core.memory import Gva, Mapping
from rift_core.plugin import PROJECT, PluginInfo
from rift_core.testing.isa_page_tables import PageTableTests
from rift_core.testing.isa_parts import FakeRegisters, PlacedAreas, PlacedGuest, double, integers
from rift_core.testing.paging_model import TABLE_MEMORY, TABLES_AT, Tables
from rift_core.testing.tools import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rift_core.isa import Isa, Privilege


class IsaConformance(PageTableTests):
    """The suite."""

    # -- fixtures --------------------------------------------------------------------------------

    @pytest.fixture
    def plugin(self) -> Any:
        """The plugin under test: a module or object with the hook implementations."""
        pytest.fail("a subclass of IsaConformance must provide the fixture 'plugin'")

    @pytest.fixture
    def features(self) -> CpuFeatures:
        """The guest's CPU."""
        return CpuFeatures()

    @pytest.fixture
    def hooks(self, plugin: Any) -> Iterator[Any]:
        """The plugin's hooks, called as a machine calls them."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(hookspecs)
        manager.register(plugin)
        manager.check_pending()
        yield manager.hook
        manager.unregister(plugin)

    @pytest.fixture
    def isa(self, hooks: Any, features: CpuFeatures) -> Isa:
        """The ISA with its default settings."""
        infos: list[PluginInfo] = []
        for answer in hooks.rift_plugin():
            infos += [answer] if isinstance(answer, PluginInfo) else list(answer)
        (info,) = (info for info in infos if info.kind == "isa")
        isa = hooks.rift_isa(config=info.config(), features=features)
        assert isa is not None
        assert isa.name == info.name
        return cast("Isa", isa)

    @pytest.fixture
    def make(self, hooks: Any, isa: Isa) -> Callable[..., Tables]:
        """``make(mappings, size)``: an address space with :data:`TABLE_MEMORY` bytes for tables, unless told."""

        def make(mappings: Sequence[Mapping] = (), size: int = TABLE_MEMORY) -> Tables:
            return Tables(hooks.rift_configure_mmu, isa, mappings, size)

        return make

    # -- description -----------------------------------------------------------------------------

    def test_register_table_is_sound(self, isa: Isa) -> None:
        names = [register.name for register in isa.registers]
        assert len(names) == len(set(names))
        assert all(name == name.lower() and name for name in names)
        assert all(0 < register.bits <= 2048 and register.group for register in isa.registers)
        assert {isa.program_counter, isa.stack_pointer, isa.frame_pointer} <= set(names)
        assert set(isa.general_registers) <= set(names)

    def test_page_sizes_and_ranges_are_sound(self, isa: Isa) -> None:
        assert list(isa.page_sizes) == sorted(set(isa.page_sizes))
        assert all(size & (size - 1) == 0 for size in isa.page_sizes)
        for half in isa.virtual_ranges:
            assert half.start % isa.page_sizes[0] == 0
            assert half.stop % isa.page_sizes[0] == 0
            assert 0 <= half.start < half.stop <= 1 << 64

    def test_debuggers_views_are_sound(self, isa: Isa) -> None:
        views = [(register, register.debug) for register in isa.registers if register.debug is not None]
        names = [view.name for _, view in views]
        assert len(names) == len(set(names))
        assert set(names).isdisjoint(view.also for _, view in views)
        assert (isa.debug is not None) == bool(views)
        for register, view in views:
            assert view.bits % 8 == 0, view.name
            assert view.shift == 0 or view.shift + view.bits <= register.bits, view.name
            places = [bit for field in view.fields for bit in range(field.first, field.last + 1)]
            assert len(places) == len(set(places)), f"{view.name}: bit fields overlap"
            assert all(bit < view.bits for bit in places), view.name
            assert bool(view.fields) == (view.type == "flags"), view.name
            assert view.type != "vector" or view.bits == 128, view.name
        roles = {view.role: register.name for register, view in views if view.role}
        if isa.debug is not None:
            assert roles["pc"] == isa.program_counter
            assert roles["sp"] == isa.stack_pointer
            assert roles["fp"] == isa.frame_pointer
            assert isa.debug.breakpoint
            assert "linux" not in isa.debug.triple

    @pytest.mark.parametrize("privilege", ["supervisor", "user"])
    def test_debuggers_know_where_a_thread_stands(self, isa: Isa, privilege: Privilege) -> None:
        if isa.debug is None:
            session().skip(f"guests of {isa.name} cannot be debugged")
        guest = _guest(isa, privilege)
        state = guest.state((), privilege)
        registers = isa.thread_registers(guest.system, guest.areas, state)
        vcpu = FakeRegisters(registers)
        place = isa.debug.place(vcpu)
        assert (place.pc, place.sp, place.privilege) == (state.entry, registers[isa.stack_pointer], privilege)
        for half in isa.virtual_ranges:
            root = isa.debug.table_root(vcpu, Gva(half.start))
            assert root == TABLES_AT or len(isa.virtual_ranges) > 1
        assert isa.debug.table_root(vcpu, state.entry) == state.root

    def test_an_undone_fault_leaves_the_vcpu_at_its_instruction(self, isa: Isa) -> None:
        if isa.debug is None:
            session().skip(f"guests of {isa.name} cannot be debugged")
        for privilege in ("supervisor", "user"):
            registers = _guest(isa, privilege).start(privilege)
            fault = GuestFault(
                vector=255, name="made up", pc=registers[isa.program_counter], sp=registers[isa.stack_pointer],
                address=None, code=None, words="", user=privilege == "user", registers=registers,
            )  # fmt: skip
            other = _guest(isa, "supervisor").start()  # its vectors have taken the exception
            vcpu = FakeRegisters({**other, isa.program_counter: 0x1234, isa.stack_pointer: 0x5678})
            isa.debug.undo_fault(fault, vcpu)
            place = isa.debug.place(vcpu)
            assert (place.pc, place.sp, place.privilege) == (fault.pc, fault.sp, privilege)
            assert isa.debug.debug_event(fault, vcpu) is None
            assert isa.debug.signal(fault) in ("SIGSEGV", "SIGILL", "SIGFPE", "SIGBUS", "SIGTRAP")

    def test_registers_of_a_core_file(self, isa: Isa) -> None:
        if isa.debug is None:
            session().skip(f"guests of {isa.name} cannot be debugged")
        everything = {r.name: (1 << r.bits) - 2 for r in isa.registers}
        general = isa.debug.core_registers(everything)
        assert len(general) % 8 == 0
        assert len(isa.debug.core_registers({})) == len(general)
        marked = isa.debug.core_registers({isa.program_counter: 0x1122_3344_5566_7788})
        assert (0x1122_3344_5566_7788).to_bytes(8, "little") in marked
        for values in (everything, {}):
            for note in isa.debug.core_notes(values):
                assert note.owner
                assert len(note.content) % 4 == 0

    def test_breakpoint_instructions_of_a_program(self, isa: Isa) -> None:
        if isa.debug is None:
            session().skip(f"guests of {isa.name} cannot be debugged")
        code = isa.debug.breakpoint
        stands = isa.debug.own_breakpoint(_code(0x1000, bytes(8) + code + bytes(8)), 0x1008)
        assert stands is not None
        assert 0x1008 <= stands <= 0x1008 + len(code)
        assert isa.debug.own_breakpoint(_code(0x1000, bytes(16 + len(code))), 0x1008) is None
        assert isa.debug.own_breakpoint(_code(0x1000, bytes(8)), 0x8000) is None, "not mapped"

    # -- system, threads, calls ------------------------------------------------------------------

    @pytest.mark.parametrize("privilege", ["supervisor", "user"])
    def test_entry_state_uses_known_registers(self, isa: Isa, privilege: Privilege) -> None:
        widths = {register.name: register.bits for register in isa.registers}
        guest = _guest(isa, privilege)
        state = guest.state((), privilege)
        for registers in (
            isa.thread_registers(guest.system, guest.areas, state),
            isa.call_registers(guest.system, guest.areas, state),
        ):
            assert registers[isa.program_counter] == state.entry
            assert guest.areas["stack"].virtual <= registers[isa.stack_pointer] <= state.stack
            for name, value in registers.items():
                assert 0 <= value < 1 << widths[name], name

    @pytest.mark.parametrize("privilege", ["supervisor", "user"])
    def test_areas_are_whole_pages_with_different_names(self, isa: Isa, privilege: Privilege) -> None:
        for requests in (isa.system_areas(), isa.thread_areas(privilege)):
            assert len({request.name for request in requests}) == len(requests)
            for request in requests:
                assert request.size > 0
                assert request.size % isa.page_sizes[0] == 0
                assert request.name != "stack"

    def test_arguments_reach_registers_or_stack(self, isa: Isa) -> None:
        guest = _guest(isa, "supervisor")
        values = [0x1111_2222_3333_4400 + number for number in range(20)]
        registers = isa.call_registers(guest.system, guest.areas, guest.state(integers(*values)))
        stack = bytes(guest.areas["stack"].host)
        for value in values:
            assert value in registers.values() or struct.pack("<Q", value) in stack
        floats = tuple(double(number + 0.5) for number in range(20))
        registers = isa.call_registers(guest.system, guest.areas, guest.state(floats))
        stack = bytes(guest.areas["stack"].host)
        for argument in floats:
            assert argument.value in registers.values() or struct.pack("<Q", argument.value) in stack

    @pytest.mark.parametrize("size", [1, 2, 4, 8])
    @pytest.mark.parametrize("signed", [True, False])
    def test_integer_results(self, isa: Isa, size: int, signed: bool) -> None:
        bits = 8 * size
        for value in (0, 1, (1 << (bits - 1)) - 1, 1 << (bits - 1), (1 << bits) - 1):
            noise = 0xDEAD_BEEF_0000_0000 if size < 8 else 0
            exit = Exit(ExitKind.MMIO, doorbell.DEFAULT_ADDRESS + doorbell.RETURN, 8, value | noise, True)
            expected = value - (1 << bits) if signed and value >> (bits - 1) else value
            assert isa.result(exit, FakeRegisters(), ResultType("integer", size, signed)) == expected
        exit = Exit(ExitKind.MMIO, doorbell.DEFAULT_ADDRESS + doorbell.RETURN, 8, 7, True)
        assert isa.result(exit, FakeRegisters(), ResultType("void", 0)) is None


def _code(start: int, content: bytes) -> PlacedAreas:
    """Bytes at an address, and nothing else."""
    areas = PlacedAreas(start, 0)
    areas.place("code", len(content)).host[:] = content
    return areas


def _guest(isa: Isa, privilege: Privilege) -> PlacedGuest:
    """Placed areas of one machine with one thread, where the ISA has virtual addresses."""
    return PlacedGuest(isa, privilege, isa.virtual_ranges[0].start + 0x1000_0000)
