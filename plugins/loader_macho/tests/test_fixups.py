"""Pointers that are served, and those that are refused by name."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import macho_writer as w
import pytest

from rift_core.errors import BinaryError
from rift_core.memory import Permission
from rift_core.testing.loader import image_bytes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rift_core.binary import Binary

    Open = Callable[..., Binary]

BASE = 0x400000
DATA = BASE + 0x8000


def words(binary: Binary, address: int, count: int = 1) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", image_bytes(binary, address, 8 * count))


def numbers(count: int, first: int = 0x1000) -> bytes:
    return struct.pack(f"<{count}Q", *range(first, first + count))


class TestRebase:
    @pytest.mark.parametrize(
        ("opcodes", "hit"),
        [
            (b"\x11\x21\x00\x54", {0, 1, 2, 3}),  # four times
            (b"\x11\x21\x08\x60\x03", {1, 2, 3}),  # many times
            (b"\x11\x21\x00\x51\x42\x51", {0, 3}),  # add, scaled
            (b"\x11\x21\x00\x51\x30\x10\x51", {0, 3}),  # add
            (b"\x11\x21\x00\x70\x08\x70\x08\x51", {0, 2, 4}),  # and add
            (b"\x11\x21\x00\x80\x03\x10", {0, 3, 6}),  # times skipping
            (b"\x11\x21\x38\x51\x30" + w.uleb(-64 & w.MASK) + b"\x51", {7, 0}),  # backwards, by wrapping
            (b"\x11\x21\x00\x50\x00\xff", set()),  # no times, done; what follows is padding
            (b"", set()),
        ],
    )
    def test_opcodes(self, opened: Open, opcodes: bytes, hit: set[int]) -> None:
        binary = opened(w.movable(data=numbers(8), rebase=opcodes or b"\0"))
        expected = tuple(0x1000 + n + (BASE if n in hit else 0) for n in range(8))
        assert words(binary, DATA, 8) == expected

    def test_at_its_own_address_nothing_changes(self, opened: Open) -> None:
        base = 0x200000
        macho = w.movable(base, data=numbers(8), kind=w.EXECUTE, rebase=w.rebase((1, 0), (1, 8)))
        binary = opened(macho)
        assert words(binary, base + 0x8000, 8) == tuple(range(0x1000, 0x1008))
        assert binary.slide == 0

    def test_chosen_base(self, opened: Open) -> None:
        binary = opened(w.movable(data=numbers(8), rebase=w.rebase((1, 8))), base="0xffffffff80000000")
        assert words(binary, 0xFFFFFFFF80008000, 2) == (0x1000, 0xFFFFFFFF80001001)
        assert binary.slide == 0xFFFFFFFF80000000

    def test_sums_wrap(self, opened: Open) -> None:
        binary = opened(w.movable(data=struct.pack("<Q", w.MASK), rebase=w.rebase((1, 0))))
        assert words(binary, DATA) == (BASE - 1,)

    def test_unaligned_and_read_only(self, opened: Open) -> None:
        binary = opened(w.movable(rebase=w.rebase((0, 0x1003))))
        assert words(binary, BASE + 0x1003) == (BASE,)
        assert binary.segments[0].data.readonly

    @pytest.mark.parametrize("protection", [w.R | w.W, w.R | w.W | w.X, w.W])
    def test_a_segment_is_sealed_when_its_pointers_are_set(self, opened: Open, protection: int) -> None:
        macho = w.movable(data=numbers(8), rebase=w.rebase((1, 0)))
        macho.segments[1].flags, macho.segments[1].protection = 0x10, protection  # SG_READ_ONLY
        binary = opened(macho)
        assert words(binary, DATA, 2) == (BASE + 0x1000, 0x1001)
        assert binary.segments[1].permissions == Permission.READ
        assert binary.segments[1].data.readonly

    @pytest.mark.parametrize("slid", [False, True])
    @pytest.mark.parametrize(
        ("opcodes", "message"),
        [
            (b"\x11\x51", "before any segment is named"),
            (b"\x11\x29\x00\x51", "no segment of that number"),
            (b"\x11\x21\x39\x51", "outside the file's part of its segment"),
            (b"\x11\x21\x40\x51", "outside the file's part"),
            (b"\x11\x21" + w.uleb(w.MASK) + b"\x51", "outside the file's part"),
            (b"\x11\x21\x00\x60" + w.uleb(1 << 60), "outside the file's part"),
            (b"\x11\x21\x00\x80\x02" + w.uleb(w.MASK - 8), "outside the file's part"),
            (b"\x12", r"no instructions \(rebase type\) \(2\)"),
            (b"\x90", "unknown opcode"),
            (b"\x11\x21\x80", "end within a number"),
            (b"\x11\x21" + b"\x80" * 10 + b"\0", "more than 64 bits"),
            (b"\x11\x21" + b"\xff" * 9 + b"\x02", "more than 64 bits"),
        ],
    )
    def test_damage(self, opened: Open, tmp_path: Path, opcodes: bytes, message: str, slid: bool) -> None:
        with pytest.raises(BinaryError, match=message) as caught:
            opened(w.movable(0 if slid else 0x200000, rebase=opcodes))
        assert str(caught.value).startswith(f"{tmp_path / 'file'}: offset 0x")
        assert "rebase opcodes" in str(caught.value)


class TestBind:
    """LC_DYLD_INFO."""

    @pytest.mark.parametrize("field", ["bind", "lazy_bind"])
    def test_a_symbol_from_elsewhere_is_named(self, opened: Open, field: str) -> None:
        macho = w.movable(libraries=["/usr/lib/libA.dylib", "/usr/lib/libB.dylib"])
        setattr(macho, field, w.bind("_strlen", 1, 0, library=2))
        with pytest.raises(BinaryError, match=r"needs the symbol _strlen of /usr/lib/libB.dylib; define it"):
            opened(macho)

    def test_the_second_lazy_symbol_is_found_behind_the_end_of_the_first(self, opened: Open) -> None:
        opcodes = w.bind("_a", 1, 0, weak=True) + bytes(3) + w.bind("_b", 1, 8)
        with pytest.raises(BinaryError, match="symbol _b;"):
            opened(w.movable(lazy_bind=opcodes))

    def test_a_hostile_name_is_shown_harmlessly(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match=r"symbol \\x1b\[31m"):
            opened(w.movable(bind=w.bind("\x1b[31m" + "x" * 300, 1, 0)))

    def test_weak_imports_are_missing(self, opened: Open) -> None:
        binary = opened(w.movable(data=numbers(8), bind=w.bind("_may_be_missing", 1, 8, weak=True)))
        assert words(binary, DATA, 3) == (0x1000, 0, 0x1002)

    def test_opcodes_that_set_nothing_are_harmless(self, opened: Open) -> None:
        names = b"\x11\x40_unused\0\x51\x71\x00\x60\x7f\x80\x08\x3e\x20\x05\0"
        assert words(opened(w.movable(data=numbers(8), bind=names)), DATA, 2) == (0x1000, 0x1001)

    def test_weak_definitions_are_rebased_and_not_bound(self, opened: Open) -> None:
        """Linkers write both: a rebase to the file's own definition, and the name for others to override."""
        macho = w.movable(
            data=numbers(8), rebase=w.rebase((1, 0)), weak_bind=b"\x40_weak\0\x51\x71\x00\x90\0"
        )  # fmt: skip
        assert words(opened(macho), DATA) == (BASE + 0x1000,)

    @pytest.mark.parametrize(
        ("opcodes", "message"),
        [
            (b"\x40_endless", "end within a symbol's name"),
            (b"\x41_weak\0\x90", "before any segment"),
            (b"\x41_weak\0\x71\x3c\x90", "outside the file's part"),
            (b"\x41_weak\0\x7f\x00\x90", "no segment of that number"),
            (b"\x41_weak\0\x71\x00\xc0" + w.uleb(1 << 62) + b"\x00", "outside the file's part"),
            (b"\x41_weak\0\x71\x00\xa0", "end within a number"),
            (b"\x60" + b"\x80" * 10, "more than 64 bits"),
            (b"\xd1", "unknown opcode"),
        ],
    )
    def test_damage(self, opened: Open, opcodes: bytes, message: str) -> None:
        with pytest.raises(BinaryError, match=message):
            opened(w.movable(bind=opcodes))


def chained(data: list[int], starts: list[int], imports: list[w.Import] | None = None, base: int = 0,
            **options: int) -> w.Macho:  # fmt: skip
    """``data`` as words of the data segment, of two pages."""
    content = struct.pack(f"<{len(data)}Q", *data).ljust(0x1000, b"\0") + bytes(0x100)
    return w.movable(base, data=content, chains=w.chains({1: (0x8000, starts)}, imports, **options))


class TestChains:
    @pytest.mark.parametrize("base", [0, 0x200000])
    @pytest.mark.parametrize("pointer_format", [2, 6])
    def test_targets(self, opened: Open, pointer_format: int, base: int) -> None:
        """Format 2 holds addresses, format 6 offsets from the header; both are rewritten wherever the file stands."""
        first = base if pointer_format == 2 else 0
        data = [w.pointer(first + 0x1004, 16), 5, w.pointer(first + 0x8000, high=0x80)]
        binary = opened(chained(data, [0], base=base, pointer_format=pointer_format))
        start = base or BASE
        assert words(binary, start + 0x8000, 3) == (start + 0x1004, 5, start + 0x8000 | 0x80 << 56)

    def test_largest_target(self, opened: Open) -> None:
        binary = opened(chained([w.pointer((1 << 36) - 1, high=0xFF)], [0]))
        assert words(binary, DATA) == ((BASE + (1 << 36) - 1 + (0xFF << 56)) & w.MASK,)

    def test_two_pages_and_an_empty_one(self, opened: Open) -> None:
        macho = chained([7, w.pointer(0x1000)], [8, 0x20, 0xFFFF])
        macho.segments[1].data = macho.segments[1].data[:0x1020] + struct.pack("<Q", w.pointer(0x1008)) + bytes(8)
        binary = opened(macho)
        assert words(binary, DATA, 2) == (7, BASE + 0x1000)
        assert words(binary, DATA + 0x1020) == (BASE + 0x1008,)

    def test_pages_of_16_kib(self, opened: Open) -> None:
        macho = chained([w.pointer(0x1000, 0x1008)], [0], page_size=0x4000)
        macho.segments[1].data = macho.segments[1].data[:0x1008] + struct.pack("<Q", w.pointer(0x1008)) + bytes(8)
        assert words(opened(macho), DATA + 0x1008) == (BASE + 0x1008,)

    @pytest.mark.parametrize("imports_format", [1, 2, 3])
    def test_binds_are_refused_by_name(self, opened: Open, imports_format: int) -> None:
        macho = chained(
            [w.bound(1)], [0], [w.Import("_one"), w.Import("_two", 2)], imports_format=imports_format
        )  # fmt: skip
        macho.libraries = ["/usr/lib/libA.dylib", "/usr/lib/libB.dylib"]
        with pytest.raises(BinaryError, match=r"needs the symbol _two of /usr/lib/libB.dylib; define it"):
            opened(macho)

    def test_imports_that_nothing_uses_are_harmless(self, opened: Open) -> None:
        assert words(opened(chained([w.pointer(0x1000)], [0], [w.Import("_elsewhere")])), DATA) == (BASE + 0x1000,)

    @pytest.mark.parametrize("imports_format", [2, 3])
    @pytest.mark.parametrize("library", [0, -1, -2, -3])
    def test_own_symbols_are_bound(self, opened: Open, library: int, imports_format: int) -> None:
        imports = [w.Import("_data", library, addend=-4)]
        binary = opened(chained([w.bound(0, addend=255)], [0], imports, imports_format=imports_format))
        assert words(binary, DATA) == (DATA - 4 + 255,)

    def test_a_library_is_not_looked_for_among_own_symbols(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="symbol _data;"):
            opened(chained([w.bound(0)], [0], [w.Import("_data", 1)]))

    def test_own_names_are_those_of_the_file(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="symbol data;"):
            opened(chained([w.bound(0)], [0], [w.Import("data", -3)]))

    def test_weak_imports_are_missing(self, opened: Open) -> None:
        binary = opened(chained([w.bound(0, 8, addend=4), w.pointer(0x1000)], [0], [w.Import("_a", weak=True)]))
        assert words(binary, DATA, 2) == (0, BASE + 0x1000)

    def test_few_own_imports_are_served(self, opened: Open) -> None:
        imports = [w.Import("_data", -3) for _ in range(65)]
        assert words(opened(chained([w.bound(63)], [0], imports)), DATA) == (DATA,)
        with pytest.raises(BinaryError, match="more than 64 symbols are imported: compile with -fvisibility=hidden"):
            opened(chained([w.bound(64)], [0], imports))

    def test_names_that_cannot_be_read(self, opened: Open) -> None:
        macho = chained([w.bound(0)], [0], [w.Import("_packed")])
        macho.chains = macho.chains[:24] + struct.pack("<I", 1) + macho.chains[28:]  # symbols_format: zlib
        with pytest.raises(BinaryError, match="symbol number 0;"):
            opened(macho)

    @pytest.mark.parametrize("value", [1, 3, 4, 5, 7, 9, 12, 0xFFFF])
    def test_other_formats(self, opened: Open, value: int) -> None:
        with pytest.raises(BinaryError, match=rf"pointer_format: only DYLD_CHAINED_PTR_64 .*\((0x)?{value:x}\)"):
            opened(chained([w.pointer(0x1000)], [0], pointer_format=value))

    @pytest.mark.parametrize(
        ("data", "starts", "message"),
        [
            ([0, w.pointer(0, 0xFFC)], [8], "outside the page"),
            ([0] * 512, [0xFFC], None),  # the last pointer of a page may reach into the next one
            ([w.pointer(0)], [0x1000], "outside the page"),
            ([w.pointer(0)], [0x8000], "outside the page"),
            ([w.pointer(0)], [0xFFFF, 0xFF], "outside the page or the file's part"),
            ([w.pointer(0)], [0xFFFF, 0xFFFF, 0], "outside the page or the file's part"),
            ([w.bound(0)], [0], "no import of that number"),
        ],
    )
    def test_damaged_lists(self, opened: Open, data: list[int], starts: list[int], message: str | None) -> None:
        macho = chained(data, starts)
        if message is None:
            opened(macho)
            return
        with pytest.raises(BinaryError, match=message):
            opened(macho)

    @pytest.mark.parametrize(
        ("offset", "layout", "value", "message"),
        [
            (0, "I", 1, "fixups_version: unknown version"),
            (4, "I", 0xFFFFFFF0, "starts_offset"),
            (8, "I", 0xFFFFFFF0, "imports_offset"),
            (20, "I", 9, "imports_format: unknown format"),
            (32, "I", 99, "seg_count: more segments than the file has"),
            (40, "I", 0xFFFFFF, "seg_info_offset"),
            (52, "H", 0x2000, "page_size: neither 4 KiB nor 16 KiB"),
            (56, "Q", 0x9000, "segment_offset: not where the segment is"),
            (68, "H", 0xFFFF, "page_count: the list of pages"),
        ],
    )
    def test_damaged_tables(self, opened: Open, offset: int, layout: str, value: int, message: str) -> None:
        macho = chained([w.bound(0)], [0], [w.Import("_a", weak=True)])
        opened(macho)
        data = bytearray(macho.chains)
        struct.pack_into("<" + layout, data, offset, value)
        macho.chains = bytes(data)
        with pytest.raises(BinaryError, match=message):
            opened(macho)

    def test_too_small(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="datasize: too small"):
            opened(w.movable(chains=bytes(27)))

    def test_without_a_header_in_memory(self, opened: Open) -> None:
        macho = chained([w.pointer(0x1000)], [0])
        macho.segments[0] = w.Seg("__TEXT", 0x1000, bytes(64), protection=w.R | w.X)
        macho.symbols = []
        with pytest.raises(BinaryError, match="no segment shows the file's header"):
            opened(macho)


@pytest.mark.parametrize("map_file", [True, False])
def test_the_file_is_not_touched(opened: Open, tmp_path: Path, map_file: bool) -> None:
    macho = chained([w.pointer(0x1000)], [0])
    assert words(opened(macho, map_file=map_file), DATA) == (BASE + 0x1000,)
    assert (tmp_path / "file").read_bytes() == macho.build()


def test_segments_that_share_relocated_bytes(opened: Open) -> None:
    macho = w.movable(rebase=w.rebase((1, 0)))
    data = macho.build()
    place = data.index(b"__DATA") + 32  # fileoff of the first segment command that holds the name
    (offset,) = struct.unpack_from("<Q", data, place)
    macho.segments.append(w.Seg("__TWIN", 0x20000, bytes(64), protection=w.R | w.W, offset=offset + 56))
    macho.segments[-1].data = bytes(64)
    with pytest.raises(BinaryError, match="shares its bytes with another one"):
        opened(macho)


def test_relocations_of_old_linkers(opened: Open) -> None:
    assert opened(w.good(relocations=(0, 0))).entry is not None
    with pytest.raises(BinaryError, match="nextrel: 1 pointers are bound by external relocations"):
        opened(w.good(relocations=(1, 0)))
    assert opened(w.movable(0x200000, relocations=(0, 2))).segments[0].address == 0x200000
    with pytest.raises(BinaryError, match="nlocrel: 2 pointers are rebased by local relocations"):
        opened(w.movable(relocations=(0, 2)))
