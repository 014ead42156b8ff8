"""Memory: through page tables and without, across pages, what is not mapped, binary packets."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import Debugged

    Debug = Callable[..., Debugged]

UNMAPPED = 0x5000_0000


@pytest.fixture
def filled(debug: Debug) -> Debugged:
    """Stopped after ``pages`` was filled: each byte is a sixteenth of its offset."""
    debugged = debug("fill")
    client = debugged.begin()
    assert client.ask(f"Z0,{debugged.at('twice'):x},1") == b"OK"
    client.stop("vCont;c")
    return debugged


def content(first: int, size: int) -> bytes:
    return bytes((at >> 4) & 0xFF for at in range(first, first + size))


def test_across_a_page_border(filled: Debugged) -> None:
    client = filled.clients[0]
    pages = filled.at("pages")
    for first, size in ((0xFF0, 0x20), (0, 0x2000), (0xFFF, 2), (0x1000, 1), (5, 3)):
        assert client.read(pages + first, size) == content(first, size)
        assert client.read(pages + first, size) == content(first, size), "answered natively now"
    client.write(pages + 0xFFC, bytes(range(1, 9)))
    assert client.read(pages + 0xFFC, 8) == bytes(range(1, 9))
    assert bytes(filled.machine.read_virtual(pages + 0xFFC, 8)) == bytes(range(1, 9))


def test_binary_packets_of_both_kinds(filled: Debugged) -> None:
    client = filled.clients[0]
    pages = filled.at("pages")
    special = b"#$}*\x03+-\x00"
    size = len(special)
    assert client.ask(f"X{pages:x},0:") == b"OK"
    assert client.ask(b"X%x,%x:" % (pages, size) + special) == b"OK"
    assert client.ask(f"x{pages:x},{size:x}") == b"b" + special
    assert client.ask(f"x{pages:x},{size:x}") == b"b" + special, "answered natively now"
    # LLDB before version 20 asks like this, and from then on wants the bytes alone.
    assert client.ask("x0,0") == b"OK"
    assert client.ask(f"x{pages:x},{size:x}") == special
    assert client.ask(f"x{pages:x},{size:x}") == special
    assert client.ask(b"X%x,9:" % pages + special).startswith(b"E")


def test_what_is_not_mapped_is_an_error(filled: Debugged) -> None:
    client = filled.clients[0]
    for packet in (f"m{UNMAPPED:x},4", f"x{UNMAPPED:x},4", f"M{UNMAPPED:x},1:00", f"X{UNMAPPED:x},1:a"):
        answer = client.ask(packet)
        assert answer.startswith(b"E"), packet
        assert b"not mapped" in answer
    assert client.ask("mffffffffffffffff,10").startswith(b"E")
    assert client.ask("m8000000000000000,8").startswith(b"E")


def test_as_much_as_is_mapped(filled: Debugged) -> None:
    """A read that runs into nothing gives what is there."""
    client = filled.clients[0]
    stack = filled.machine.threads[0].context.areas["stack"]
    last = stack.end - 16
    assert len(client.ask(f"m{last:x},40")) == 32
    assert client.ask(f"M{last:x},20:{bytes(32).hex()}").startswith(b"E"), "a write is done wholly or not at all"


def test_read_only_pages_can_be_written_by_the_debugger(filled: Debugged) -> None:
    client = filled.clients[0]
    constant = filled.at("constant")
    walk = filled.machine.translate(constant)
    assert "w" not in str(walk.permissions)
    client.write(constant, (4321).to_bytes(4, "little"))
    assert client.read(constant, 4) == (4321).to_bytes(4, "little")


def test_guest_physical_memory(filled: Debugged) -> None:
    client = filled.clients[0]
    pages = filled.at("pages")
    physical = filled.machine.translate(pages).physical
    assert physical is not None
    assert "guest-physical" in client.monitor("phys on")
    assert client.read(physical + 0x100, 4) == content(0x100, 4)
    assert client.ask("qqemu.PhyMemMode") == b"1"
    assert client.ask(f"m{1 << 45:x},4").startswith(b"E")
    assert client.ask("Qqemu.PhyMemMode:0") == b"OK"
    assert client.read(pages + 0x100, 4) == content(0x100, 4)


def test_page_tables_that_the_debugger_changes_count_at_once(filled: Debugged) -> None:
    """What was answered natively is looked up again after a write, which may have been to a page table."""
    client = filled.clients[0]
    pages = filled.at("pages")
    assert client.read(pages + 0x1000, 4) == content(0x1000, 4)
    first, second = (filled.machine.translate(pages + at) for at in (0, 0x1000))
    leaf = second.steps[-1]
    assert client.monitor("phys on")
    entry = int.from_bytes(client.read(leaf.entry_address, 8), "little")
    assert first.physical is not None
    assert second.physical is not None
    moved = entry - second.physical + first.physical
    client.write(leaf.entry_address, moved.to_bytes(8, "little"))
    assert client.monitor("phys off")
    assert client.read(pages + 0x1000, 4) == content(0, 4)
    assert client.monitor("phys on")
    client.write(leaf.entry_address, entry.to_bytes(8, "little"))


def test_page_tables_of_the_guests_own(filled: Debugged) -> None:
    """A thread whose root is another copy of the tables: memory is what that one says."""
    client = filled.clients[0]
    pages = filled.at("pages")
    machine = filled.machine
    isa = machine.isa
    walk = machine.translate(pages)
    page = isa.page_sizes[0]
    copies: dict[int, int] = {}
    for step in walk.steps:
        table = step.entry_address & ~(page - 1)
        copy = machine.engine.take_physical(page)
        machine.memory[copy : copy + page] = bytes(machine.memory[table : table + page])
        copies[table] = copy
    for step, below in zip(walk.steps, walk.steps[1:], strict=False):
        table, target = step.entry_address & ~(page - 1), below.entry_address & ~(page - 1)
        at = copies[table] + step.entry_address % page
        word = int.from_bytes(machine.memory[at : at + 8], "little") - target + copies[target]
        machine.memory[at : at + 8] = word.to_bytes(8, "little")
    last = walk.steps[-1]
    at = copies[last.entry_address & ~(page - 1)] + last.entry_address % page
    word = int.from_bytes(machine.memory[at : at + 8], "little")
    other = machine.translate(pages + page).physical
    assert walk.physical is not None
    assert other is not None
    machine.memory[at : at + 8] = (word - walk.physical + other).to_bytes(8, "little")
    assert client.read(pages, 4) == content(0, 4)
    top = copies[walk.steps[0].entry_address & ~(page - 1)]
    number = filled.numbers["cr3" if filled.isa == "x86_64" else "TTBR0_EL1"]
    assert client.ask(f"P{number:x}={top.to_bytes(8, 'little').hex()}") == b"OK"
    assert client.read(pages, 4) == content(page, 4)
    assert "guest-physical" in client.monitor(f"pt {pages:#x}")


def test_search_and_checksum(filled: Debugged) -> None:
    client = filled.clients[0]
    text = filled.at("text")
    assert client.ask(b"qSearch:memory:%x;20;needle" % text) == b"1,%x" % (text + 2)
    assert client.ask(b"qSearch:memory:%x;4;needle" % text) == b"0"
    assert client.ask(b"qSearch:memory:%x;20;" % text).startswith(b"E")
    pages = filled.at("pages")
    # Across the pieces that are searched one after another.
    client.write(pages + 0xFFD, b"border")
    assert client.ask(b"qSearch:memory:%x;2000;border" % pages) == b"1,%x" % (pages + 0xFFD)

    def crc(data: bytes) -> int:
        value = 0xFFFF_FFFF
        for byte in data:
            value ^= byte << 24
            for _ in range(8):
                value = (value << 1 ^ (0x04C1_1DB7 if value >> 31 else 0)) & 0xFFFF_FFFF
        return value

    assert client.ask(f"qCRC:{text:x},13") == b"C%x" % crc(filled.machine.read_virtual(text, 0x13))
    assert client.ask(f"qCRC:{UNMAPPED:x},10").startswith(b"E")


def test_regions_for_lldb(filled: Debugged) -> None:
    client = filled.clients[0]

    def region(address: int) -> dict[str, str]:
        answer = client.ask(f"qMemoryRegionInfo:{address:x}").decode()
        return dict(word.split(":") for word in answer.rstrip(";").split(";"))

    code = region(filled.at("twice"))
    assert code["permissions"] == "rx"
    assert int(code["start"], 16) <= filled.at("twice") < int(code["start"], 16) + int(code["size"], 16)
    assert "w" in region(filled.at("counter"))["permissions"]
    hole = region(UNMAPPED)
    assert "permissions" not in hole
    assert int(hole["start"], 16) == UNMAPPED
    # The whole of the address space, as `memory region --all` walks it.
    address, seen = 0, 0
    while address < 1 << 64:
        part = region(address)
        assert int(part["size"], 16) > 0
        address = int(part["start"], 16) + int(part["size"], 16)
        seen += 1
        assert seen < 200
    assert address == 1 << 64


def test_pages_that_lldb_asks_for(filled: Debugged) -> None:
    client = filled.clients[0]
    address = int(client.ask("_M1800,rw"), 16)
    client.write(address, b"a" * 0x1800)
    assert client.read(address + 0xFFE, 4) == b"aaaa"
    assert client.ask(f"_m{address:x}") == b"OK"
    assert client.ask("_M0,rw").startswith(b"E")
    assert client.ask("_Mffffffffff,rw").startswith(b"E")


def test_what_makes_no_sense_is_an_error(filled: Debugged) -> None:
    client = filled.clients[0]
    for packet in ("m", "mzz,4", "m10", "m1,2,3", "m-1,4", "M10,1:0", "M10:00", "X10", "qSearch:memory:0;10", "mg,1"):
        assert client.ask(packet).startswith(b"E"), packet
    assert client.ask("qSearch:registers:0;10;a") == b""
