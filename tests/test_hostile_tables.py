"""Supervisor guests own their page tables, and may make anything of them: the host must not fall for it."""

from __future__ import annotations

import contextlib
import random
import time
from typing import TYPE_CHECKING

import pytest
from machine_code import ISA

from rift_core import GuestError, Machine, RiftError
from rift_core.testing.tools import only_where

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = only_where(ISA == "x86_64", "the tables are those of x86-64")

SECONDS = 1.0
"""No single question to the host may take longer, whatever the tables say."""

PRESENT, WRITE, USER, LARGE = 1, 2, 4, 0x80
ADDRESS = 0x000F_FFFF_FFFF_F000


class Tables:
    """The page tables of a machine, as its guest sees them: whole pages of words."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.root = machine.engine.root
        plan = machine.engine.plan
        self.words = machine.memory[plan.tables.physical : plan.tables.physical + plan.tables.size].cast("Q")
        self.base = plan.tables.physical
        self.used = [at for at, word in enumerate(self.words) if word & PRESENT]

    def put(self, address: int, index: int, value: int) -> None:
        """Write entry ``index`` of the table at guest-physical ``address``."""
        self.words[(address - self.base) // 8 + index] = value

    def get(self, address: int, index: int) -> int:
        return self.words[(address - self.base) // 8 + index]

    def path(self, virtual: int) -> list[tuple[int, int]]:
        """``(table, index)`` of each level on the way to ``virtual``."""
        return [(step.entry_address & ~0xFFF, step.entry_address % 0x1000 // 8) for step in
                self.machine.translate(virtual).steps]  # fmt: skip


def ask_everything(machine: Machine, addresses: list[int]) -> None:
    """Every host operation that follows page tables; each ends in time, with a result or a RiftError."""
    engine = machine.engine
    operations: list[Callable[[int], object]] = [
        machine.translate,
        lambda a: machine.view(a, 1),
        lambda a: machine.view(a, 1 << 40),
        lambda a: machine.read_virtual(a, 64),
        lambda a: engine.read_user(a, 64),
        lambda a: machine.accessed_dirty(a & ~0xFFF, 1 << 30),
        lambda a: machine.accessed_dirty(a & ~0xFFF, 1 << 21, clear=True),
        lambda a: machine.write_virtual(a, bytes(16)),
        lambda a: engine.write_user(a, bytes(16)),
        lambda a: machine.map(a & ~0xFFF, 0x3000, "rw", physical=0),
        lambda a: machine.protect(a & ~0xFFF, 0x2000, "rx"),
        lambda a: machine.unmap(a & ~0xFFF, 0x2000),
        lambda a: machine.load_code(b"\xc3", at=a),
    ]
    for address in addresses:
        for operation in operations:
            began = time.monotonic()
            with contextlib.suppress(RiftError):
                operation(address)
            assert time.monotonic() - began < SECONDS, hex(address)


def interesting(machine: Machine) -> list[int]:
    plan = machine.engine.plan
    mapped = [m.virtual for m in plan.mappings] + [m.end - 8 for m in plan.mappings]
    return [*mapped, 0, 0xFFF, 0x40_0000, (1 << 47) - 0x1000, 0xFFFF_8000_0000_0000, 1 << 47, 1 << 63, (1 << 64) - 1]


def test_a_table_that_is_its_own_child(machine: Machine) -> None:
    tables = Tables(machine)
    code = machine.engine.plan.binary.segments[0].address
    for table, index in tables.path(code):
        before = tables.get(table, index)
        for target in {tables.root, table, *(t for t, _ in tables.path(code))}:
            tables.put(table, index, target | PRESENT | WRITE | USER)
            ask_everything(machine, [code, code + 0x1000, code + 0x20_0000])
            tables.put(table, index, before)


@pytest.mark.parametrize(
    "value",
    [
        0x000F_FFFF_FFFF_F000 | PRESENT | WRITE | USER,  # the end of what an entry can name
        0x0000_0000_FEE0_0000 | PRESENT | WRITE,  # a window that the hypervisor reserves
        0x0000_0000_7000_0000 | PRESENT | WRITE,  # the doorbell, which has no memory
        1 << 45 | PRESENT | WRITE,
        LARGE | PRESENT | WRITE,  # a large page, at levels that have none too
        0x1F_E000 | LARGE | PRESENT,  # reserved bits of a large page
        (1 << 64) - 1,
        0x7FFF_FFFF_FFFF_FFFF,
        0,
    ],
    ids=hex,
)
def test_entries_that_lead_elsewhere(machine: Machine, value: int) -> None:
    tables = Tables(machine)
    code = machine.engine.plan.binary.segments[0].address
    for table, index in tables.path(code):
        before = tables.get(table, index)
        tables.put(table, index, value)
        ask_everything(machine, [code, code - 0x1000, code + 0x20_0000])
        tables.put(table, index, before)


@pytest.mark.parametrize("seed", range(12))
def test_tables_of_random_words(machine: Machine, seed: int) -> None:
    tables = Tables(machine)
    choose = random.Random(seed)
    pages = len(tables.words) // 512
    for _ in range(6):
        for _ in range(choose.choice((1, 20, len(tables.used)))):
            target = tables.base + choose.randrange(pages) * 0x1000
            value = choose.choice(
                (
                    target | PRESENT | WRITE | USER,
                    choose.getrandbits(64),
                    choose.getrandbits(40) & ADDRESS | PRESENT | choose.choice((0, WRITE, LARGE, USER | WRITE)),
                )
            )
            tables.words[choose.choice(tables.used)] = value
        ask_everything(machine, interesting(machine)[::3] + [choose.getrandbits(64) for _ in range(3)])


@pytest.mark.parametrize("level", range(4))
def test_a_guest_that_pulls_its_own_tables_away_ends_with_an_error(
    machine: Machine, functions: dict[str, int], level: int
) -> None:
    """The entries on the way to its own code, to the vectors, and to the doorbell."""
    tables = Tables(machine)
    window = machine.engine.plan.tables

    def overwrite(entry: int, value: int) -> None:
        machine.call(functions["store"], entry, value, timeout=0.5)
        machine.call(functions["undefined"], timeout=0.5)

    for victim in (functions["store"], machine.engine.system.areas["code"].virtual, machine.doorbell):
        table, index = tables.path(victim)[level]
        entry = window.virtual + table - window.physical + 8 * index
        before = tables.get(table, index)
        for value in (0, table | PRESENT | WRITE, 1 << 44 | PRESENT | WRITE, (1 << 64) - 1):
            began = time.monotonic()
            with pytest.raises((GuestError, TimeoutError)):
                overwrite(entry, value)
            assert time.monotonic() - began < 2 * (0.5 + SECONDS)
            tables.put(table, index, before)
            machine.vm.flush_translations()
    assert machine.call(functions["add"], 20, 22) == 42


@pytest.mark.parametrize("register", [0x800, 0x808, 0x810, 0x818, 0xFF8])
def test_a_supervisor_that_forges_the_registers_of_its_vectors(machine: Machine, register: int) -> None:
    """The stack pointer leads to nothing, to the doorbell itself, and past the end of the address space."""
    for stack in (0, 8, 0x7000_0000, 0xFFFF_FFFF_FFFF_FFF8, 1 << 47):
        code = b"\x48\xbc" + stack.to_bytes(8, "little")  # mov rsp, stack
        code += b"\x48\x89\x04\x25" + (0x7000_0000 + register).to_bytes(4, "little") + b"\xeb\xfe"  # mov [..], rax
        address = machine.load_code(code)
        if register == 0x800:
            machine.call(address, timeout=5)
            continue
        with pytest.raises((GuestError, TimeoutError)):
            machine.call(address, timeout=0.5)
    assert machine.call(machine.load_code(bytes.fromhex("488d0437c3")), 1, 2) == 3
