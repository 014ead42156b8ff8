"""Page tables and entry registers together, judged by a second implementation of the manual's translation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_aarch64 import Aarch64Config
from rift_core.memory import Caching, Gva, Mapping, Permission
from rift_core.testing.paging_model import PagingModel, disjoint, mapping_strategy
from rift_core.testing.tools import load_module

R, W, X, U = Permission.READ, Permission.WRITE, Permission.EXECUTE, Permission.USER
ATTRIBUTES = {Caching.WRITE_BACK: 0xFF, Caching.WRITE_THROUGH: 0xBB, Caching.UNCACHED: 0x44,
              Caching.WRITE_COMBINING: 0x44, Caching.DEVICE: 0x04}  # fmt: skip
CASES = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors, HealthCheck.too_slow],
)


reference = load_module(Path(__file__).with_name("reference_walk.py"))


class Machine:
    """An ISA with its page tables, and what its registers say to the reference."""

    def __init__(self, make_guest: Any, make_space: Any, cpu: Any, config: Aarch64Config, **options: int) -> None:
        self.guest = make_guest(config, cpu)
        self.space = make_space(config=config, **options)
        self.registers = self.guest.start()
        self.registers["ttbr0_el1"] = self.space.tables.root
        self.registers["ttbr1_el1"] = self.space.tables.root + self.guest.isa.geometry.page

    def translate(self, address: int) -> Any:
        return reference.translate(address, self.registers, self.space.entry)


@pytest.fixture(params=[0, 1, 2], ids=["no-tracking", "access-flag", "dirty-state"])
def tracking(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


@pytest.fixture(params=[False, True], ids=["plain", "contiguous"])
def contiguous(request: pytest.FixtureRequest) -> bool:
    value: bool = request.param
    return value


@pytest.fixture(params=[0x1000, 0x4000], ids=["4KiB", "16KiB"])
def make(
    request: pytest.FixtureRequest,
    tracking: int,
    contiguous: bool,
    make_guest: Any,
    make_space: Any,
    make_features: Any,
) -> Any:
    options = {"granule": request.param, "tracking": tracking}
    cpu, config = make_features(**options), Aarch64Config(contiguous=contiguous)
    return lambda: Machine(make_guest, make_space, cpu, config, **options)


def check(machine: Machine, model: PagingModel) -> None:
    """Every interesting address: model, reference and native walk agree."""
    isa = machine.guest.isa
    page = isa.page_sizes[0]
    for address in model.edges(page, isa.page_sizes[1:]):
        piece = model.find(address)
        found = machine.translate(address + 7)
        walk = machine.space.tables.walk(Gva(address + 7))
        if piece is None:
            assert found is None
            assert walk.physical is None
            continue
        assert found is not None, f"{address:#x} is not mapped"
        assert found.physical == walk.physical == piece.physical + address - piece.start + 7
        assert found.size == walk.page_size
        assert found.attribute == ATTRIBUTES[piece.caching]
        assert found.shareability == (3 if piece.caching in (Caching.WRITE_BACK, Caching.WRITE_THROUGH) else 2)
        user, writable, code = (bool(piece.permissions & flag) for flag in (U, W, X))
        assert found.el1_writes == writable
        assert (found.el0_reads, found.el0_writes) == (user, user and writable)
        assert found.el0_executes == (user and code)
        assert found.el1_executes == (code and not (user and writable))
        assert found.global_ == (address >= 1 << 63)


@CASES
@given(data=st.data())
def test_what_is_mapped_is_what_the_cpu_sees(make: Any, data: st.DataObject) -> None:
    machine = make()
    mappings = disjoint(data.draw(st.lists(mapping_strategy(machine.guest.isa), min_size=1, max_size=5)))
    model = PagingModel()
    for mapping in mappings:
        model.map(mapping)
    machine.space.tables.map_all(mappings)
    check(machine, model)


@CASES
@given(data=st.data())
def test_edits_are_what_the_cpu_sees(make: Any, data: st.DataObject) -> None:
    machine, model = make(), PagingModel()
    isa, tables = machine.guest.isa, machine.space.tables
    page = isa.page_sizes[0]
    first = data.draw(mapping_strategy(isa))
    tables.map(first)
    model.map(first)
    for verb in data.draw(st.lists(st.sampled_from(("protect", "unmap", "protect")), min_size=1, max_size=4)):
        if not model.pieces:
            break
        piece = data.draw(st.sampled_from(model.pieces))
        pages = (piece.end - piece.start) // page
        start = data.draw(st.integers(0, pages - 1))
        count = data.draw(st.integers(1, pages - start))
        at, size = Gva(piece.start + start * page), count * page
        permissions = R | Permission(data.draw(st.integers(0, 7)) << 1)
        if verb == "unmap":
            tables.unmap(at, size)
            model.change(at, at + size, None)
        else:
            tables.protect(at, size, permissions)
            model.change(at, at + size, permissions)
        check(machine, model)


@CASES
@given(data=st.data())
def test_a_contiguous_hint_tells_the_truth(make: Any, contiguous: bool, data: st.DataObject) -> None:
    """Every entry of an aligned run has the hint or none has; with it, addresses follow one another and all else is
    equal. Arm ARM, "The Contiguous bit"."""
    machine = make()
    isa, tables = machine.guest.isa, machine.space.tables
    mapping: Mapping = data.draw(mapping_strategy(isa))
    tables.map(mapping)
    page = isa.page_sizes[0]
    pages = mapping.size // page
    if data.draw(st.booleans()):
        start = data.draw(st.integers(0, pages - 1))
        tables.protect(Gva(mapping.virtual + start * page), page, R)
    runs = {0x1000: 16, 0x20_0000: 16, 0x4000_0000: 16, 0x4000: 128, 0x200_0000: 32}
    at, seen = mapping.virtual, 0
    while at < mapping.end and seen < 3000:
        found = machine.translate(at)
        run = runs[found.size] * found.size
        if found.contiguous:
            assert contiguous
            base = at - at % run
            members = [machine.translate(base + number * found.size) for number in range(runs[found.size])]
            for number, member in enumerate(members):
                assert member is not None
                assert member.contiguous
                assert member.size == found.size
                assert member.physical == members[0].physical + number * found.size
                assert (member.el1_writes, member.el0_executes) == (found.el1_writes, found.el0_executes)
            assert members[0].physical % run == 0
            at = base + run
        else:
            at += found.size - at % found.size
        seen += 1
