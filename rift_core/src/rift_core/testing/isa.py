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

import contextlib
import mmap
import random
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import pluggy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_core import doorbell, hookspecs
from rift_core.backend import CpuFeatures
from rift_core.errors import MappingError
from rift_core.exits import Exit, ExitKind
from rift_core.isa import GuestFault, ResultType
from rift_core.memory import Caching, Gpa, Gva, Mapping, MemoryRegion, Permission
from rift_core.plugin import PROJECT, PluginInfo
from rift_core.testing.isa_parts import FakeRegisters, PlacedAreas, PlacedGuest, double, integers
from rift_core.testing.paging_model import (
    TABLE_MEMORY,
    TABLES_AT,
    PagingModel,
    Piece,
    Tables,
    disjoint,
    mapping_strategy,
)
from rift_core.testing.tools import session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rift_core.isa import Isa, Privilege
    from rift_core.memory import AddressSpace, Walk

# Fixtures are made once a test and serve all its examples; a test may run in several subclasses.
_RELAXED = (HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow)


def cases(count: int) -> settings:
    """Hypothesis's settings for a test of the suite."""
    return settings(max_examples=count, deadline=None, suppress_health_check=_RELAXED)


@dataclass(frozen=True)
class Edit:
    """One step of a test: what to do with a range."""

    verb: str  # map, unmap, protect
    mapping: Mapping


class IsaConformance:
    """The suite."""

    def expected_permissions(self, permissions: Permission) -> Permission:
        """What a walk shows of a page mapped with ``permissions``."""
        return permissions | Permission.READ

    def expected_caching(self, caching: Caching) -> Caching:
        """What a walk shows of a page mapped with ``caching``."""
        return caching

    forged_flags: tuple[int, ...] = (0x3, 0x7, 0x67, 0x403, 0x703, 0x407)
    """Flags of entries that look good, for tables as a hostile guest would make them; override with the ISA's own."""

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

    # -- page tables -----------------------------------------------------------------------------

    def test_walk_from_another_root(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        start = isa.virtual_ranges[0].start + isa.page_sizes[-1]
        tables = make((Mapping(Gva(start), Gpa(0), page, Permission.READ),))
        space = tables.space
        assert space.walk(Gva(start), space.root) == space.walk(Gva(start))
        for root in (TABLES_AT - page, 1 << 51, 0):
            walk = space.walk(Gva(start), Gpa(root))
            assert walk.physical is None
            assert walk.reason

    @cases(60)
    @given(data=st.data())
    def test_walk_finds_what_was_mapped(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        mappings = disjoint(data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=6)))
        model = PagingModel()
        for mapping in mappings:
            model.map(mapping)
        tables = make(mappings)
        self._compare(isa, tables.space, model)
        assert 0 <= tables.space.root - TABLES_AT < TABLE_MEMORY

    @cases(60)
    @given(data=st.data())
    def test_edits_follow_the_model(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        few = data.draw(st.booleans())
        least = isa.tables_size(())
        size = least + data.draw(st.integers(0, 11)) * isa.page_sizes[0] if few else TABLE_MEMORY
        tables, model = make((), size), PagingModel()
        possible = ("done", "illegal", "full") if few else ("done", "illegal")
        verbs = st.sampled_from(("map", "map", "unmap", "protect"))
        for edit in data.draw(st.lists(st.builds(Edit, verbs, mapping_strategy(isa)), min_size=2, max_size=10)):
            mapping = edit.mapping
            if edit.verb != "map" and model.pieces and data.draw(st.booleans()):
                mapping = self._inside(isa, model, mapping, data)
            assert self._edit(isa, tables, model, edit.verb, mapping) in possible

    @cases(120)
    @given(data=st.data())
    def test_pieces_cut_out_of_large_pages(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        """With few tables: what is refused for want of them changes nothing either."""
        mapping = data.draw(mapping_strategy(isa))
        large = data.draw(st.sampled_from(isa.page_sizes[1:] or isa.page_sizes))
        start = mapping.virtual - mapping.virtual % large
        size = large + data.draw(st.sampled_from((0, 0, isa.page_sizes[0], large)))
        mapping = mapping._replace(virtual=Gva(start), physical=Gpa(7 * isa.page_sizes[-1]), size=size, largest_page=0)
        spare = data.draw(st.integers(0, 4)) * isa.page_sizes[0]
        tables, model = make((mapping,), isa.tables_size((mapping,)) + spare), PagingModel()
        model.map(mapping)
        for verb in data.draw(st.lists(st.sampled_from(("unmap", "protect", "protect")), min_size=1, max_size=4)):
            if model.pieces:
                part = self._inside(isa, model, data.draw(mapping_strategy(isa)), data)
                assert self._edit(isa, tables, model, verb, part) in ("done", "full")

    @cases(30)
    @given(data=st.data())
    def test_unmapping_everything_gives_the_tables_back(
        self, isa: Isa, make: Callable[..., Tables], data: st.DataObject
    ) -> None:
        tables = make()
        free = tables.space.free_tables
        mappings = disjoint(data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=4)))
        for mapping in mappings:
            tables.space.map(mapping)
        assert tables.space.free_tables < free
        for mapping in mappings:
            tables.space.unmap(mapping.virtual, mapping.size)
        assert tables.space.free_tables == free

    @cases(30)
    @given(data=st.data())
    def test_the_promised_size_is_enough(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        mappings = disjoint(data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=6)))
        size = isa.tables_size(mappings)
        tables = make(mappings, size)
        model = PagingModel()
        for mapping in mappings:
            model.map(mapping)
        self._compare(isa, tables.space, model)
        fresh = make()
        used = fresh.space.free_tables
        needed = fresh.space.tables_needed(mappings)
        for mapping in mappings:
            fresh.space.map(mapping)
        assert used - fresh.space.free_tables <= needed

    def test_too_little_table_memory_is_refused(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        start = isa.virtual_ranges[0].start + isa.page_sizes[-1]
        mapping = Mapping(Gva(start), Gpa(0), 64 * page, Permission.READ, "wide", largest_page=page)
        least = isa.tables_size(())
        with pytest.raises(MappingError):
            make((mapping,), least)
        tables = make((), least)
        image = bytes(tables.bytes)
        with pytest.raises(MappingError):
            tables.space.map(mapping)
        assert bytes(tables.bytes) == image
        more = mmap.mmap(-1, 64 * page, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        region = MemoryRegion(Gpa(TABLES_AT + (1 << 30)), memoryview(more), Permission.READ | Permission.WRITE, "more")
        tables.memory.add(region)
        tables.space.add_tables(region)
        tables.space.map(mapping)
        assert tables.space.walk(Gva(start)).physical == 0

    def test_malformed_ranges_are_refused(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        base, last = isa.virtual_ranges[0].start + 16 * page, isa.virtual_ranges[0].stop
        good = Mapping(Gva(base), Gpa(0), page, Permission.READ)
        wrong = [
            good._replace(virtual=Gva(base + 8)),
            good._replace(physical=Gpa(8)),
            good._replace(size=page + 8),
            good._replace(size=0),
            good._replace(size=-page),
            good._replace(physical=Gpa(-page)),
            good._replace(physical=Gpa((1 << 64) - page)),
        ]
        if last < 1 << 64:
            wrong += [good._replace(virtual=Gva(last)), good._replace(virtual=Gva(last - page), size=2 * page)]
        tables = make()
        image = bytes(tables.bytes)
        for mapping in wrong:
            with pytest.raises(MappingError):
                tables.space.map(mapping)
            with pytest.raises(MappingError):
                make((mapping,))
        with pytest.raises(MappingError):
            make((good, good._replace(physical=Gpa(page))))
        with pytest.raises(MappingError):
            tables.space.unmap(Gva(base), page)
        with pytest.raises(MappingError):
            tables.space.protect(Gva(base + 1), page, Permission.READ)
        assert bytes(tables.bytes) == image

    def test_accessed_and_dirty_bits_start_clear(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page, large = isa.page_sizes[0], isa.page_sizes[-1]
        start = isa.virtual_ranges[0].start + 2 * large - page
        tables = make((Mapping(Gva(start), Gpa(0), 3 * page, Permission.READ | Permission.WRITE),))
        fresh = (not isa.keeps_accessed, not isa.keeps_dirty)  # "may have been" where the CPU does not tell
        listed = tables.space.accessed_dirty(Gva(start - page), 8 * page, clear=True)
        assert listed == [(start + number * page, page, *fresh) for number in range(3)]
        walk = tables.space.walk(Gva(start))
        assert (walk.accessed, walk.dirty) == fresh
        tables.space.protect(Gva(start), page, Permission.READ)
        assert tables.space.walk(Gva(start)).dirty == fresh[1], "what may have been written stays so"

    @cases(40)
    @given(data=st.data())
    def test_forged_tables_harm_nobody(self, isa: Isa, make: Callable[..., Tables], data: st.DataObject) -> None:
        pages = 8
        page = isa.page_sizes[0]
        tables = make((), pages * page)
        space = tables.space
        random_bits = random.Random(data.draw(st.integers(0, 1 << 32)))
        self._forge(isa, tables, random_bits, data.draw(st.sampled_from(("noise", "pointers", "loop", "low"))))
        for mapping in data.draw(st.lists(mapping_strategy(isa), min_size=1, max_size=4)):
            for address in (mapping.virtual, mapping.end - 1, random_bits.getrandbits(64)):
                walk = space.walk(Gva(address))
                assert len(walk.steps) <= 8
                assert (walk.physical is None) == bool(walk.reason)
            for verb in data.draw(st.permutations(("map", "unmap", "protect", "list", "clear"))):
                with contextlib.suppress(MappingError):
                    self._apply(space, verb, mapping)

    def test_a_removed_region_is_forgotten(self, isa: Isa, make: Callable[..., Tables]) -> None:
        page = isa.page_sizes[0]
        start = isa.virtual_ranges[0].start + isa.page_sizes[-1]
        tables = make((Mapping(Gva(start), Gpa(0), page, Permission.READ),))
        assert tables.space.walk(Gva(start)).physical == 0
        tables.memory.remove(Gpa(TABLES_AT))
        walk = tables.space.walk(Gva(start))
        assert walk.physical is None
        assert walk.reason
        with pytest.raises(MappingError):
            tables.space.unmap(Gva(start), page)

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

    # -- helpers ---------------------------------------------------------------------------------

    def _edit(self, isa: Isa, tables: Tables, model: PagingModel, verb: str, mapping: Mapping) -> str:
        """One edit of tables and model: "done"; or refused, with nothing changed, as "illegal" or "full"."""
        space, start, end = tables.space, mapping.virtual, mapping.end
        legal = model.is_free(start, end) if verb == "map" else model.is_mapped(start, end)
        before = space.free_tables
        image = bytes(tables.bytes) if not legal or len(tables.bytes) < TABLE_MEMORY else b""
        try:
            self._apply(space, verb, mapping)
        except MappingError:
            assert space.free_tables == before
            if image:
                assert bytes(tables.bytes) == image
            return "full" if legal else "illegal"
        assert legal, f"{verb} {mapping} should have been refused"
        if verb == "map":
            model.map(mapping)
        else:
            model.change(start, end, mapping.permissions if verb == "protect" else None)
        self._compare(isa, space, model)
        return "done"

    def _apply(self, space: AddressSpace, verb: str, mapping: Mapping) -> None:
        if verb == "map":
            space.map(mapping)
        elif verb == "unmap":
            space.unmap(mapping.virtual, mapping.size)
        elif verb == "protect":
            space.protect(mapping.virtual, mapping.size, mapping.permissions)
        else:
            space.accessed_dirty(mapping.virtual, mapping.size, clear=verb == "clear")

    def _compare(self, isa: Isa, space: AddressSpace, model: PagingModel) -> None:
        page = isa.page_sizes[0]
        for address in model.edges(page, isa.page_sizes[1:]):
            if not any(address in half for half in isa.virtual_ranges):
                continue
            piece = model.find(address)
            walk = space.walk(Gva(address + 5))
            assert walk.virtual == address + 5
            if piece is None:
                assert walk.physical is None, f"{address:#x} should not be mapped"
                assert walk.reason
                continue
            self._compare_page(isa, piece, address, walk)

    def _compare_page(self, isa: Isa, piece: Piece, address: int, walk: Walk) -> None:
        assert walk.physical == piece.physical + (address - piece.start) + 5, f"{address:#x}: {walk.reason}"
        assert walk.permissions == self.expected_permissions(piece.permissions), f"{address:#x}"
        assert walk.caching == self.expected_caching(piece.caching), f"{address:#x}"
        assert walk.page_size in isa.page_sizes
        assert not walk.reason
        assert walk.steps

    def _inside(self, isa: Isa, model: PagingModel, mapping: Mapping, data: st.DataObject) -> Mapping:
        """A range inside something that is mapped."""
        page = isa.page_sizes[0]
        piece = data.draw(st.sampled_from(model.pieces))
        pages = (piece.end - piece.start) // page
        first = data.draw(st.integers(0, pages - 1))
        most = min(pages - first, 3) if data.draw(st.booleans()) else pages - first
        count = data.draw(st.integers(1, most))
        return mapping._replace(virtual=Gva(piece.start + first * page), size=count * page)

    def _forge(self, isa: Isa, tables: Tables, source: random.Random, how: str) -> None:
        """Fill the tables' memory as a hostile guest would."""
        page = isa.page_sizes[0]
        for index in range(len(tables.bytes) // 8):
            if how == "noise":
                entry = source.getrandbits(64)
            elif how == "low":
                entry = source.getrandbits(12) | 3
            else:  # pointers to tables; for a loop all to the top one
                pages = len(tables.bytes) // page
                target = tables.space.root if how == "loop" else TABLES_AT + source.randrange(pages) * page
                entry = target | source.choice(self.forged_flags)
            struct.pack_into("<Q", tables.bytes, index * 8, entry)


def _code(start: int, content: bytes) -> PlacedAreas:
    """Bytes at an address, and nothing else."""
    areas = PlacedAreas(start, 0)
    areas.place("code", len(content)).host[:] = content
    return areas


def _guest(isa: Isa, privilege: Privilege) -> PlacedGuest:
    """Placed areas of one machine with one thread, where the ISA has virtual addresses."""
    return PlacedGuest(isa, privilege, isa.virtual_ranges[0].start + 0x1000_0000)
