"""What is loaded where, and what is refused with which sentence."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import elf_writer as w
import pytest
from pydantic import ValidationError

from rift_core.errors import BinaryError
from rift_core.memory import Permission
from rift_core.plugin import Section
from rift_loader_elf import ElfConfig, rift_load_binary, rift_plugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rift_core.binary import Binary

    Open = Callable[..., Binary]

RX, RW = Permission.READ | Permission.EXECUTE, Permission.READ | Permission.WRITE


def patched(offset: int, layout: str, value: int, elf: w.Elf | None = None) -> bytes:
    data = bytearray((elf or w.good()).build())
    struct.pack_into("<" + layout, data, offset, value)
    return bytes(data)


def test_the_module_is_light() -> None:
    code = (
        "import sys, rift_loader_elf; rift_loader_elf.rift_plugin();"
        "sys.exit(any(name.startswith(('elftools', 'rift_loader_elf._native')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    info = rift_plugin()
    assert (info.kind, info.name, info.config) == ("loader", "elf", ElfConfig)


def test_plain_section_means_defaults(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(w.good().build())
    assert rift_load_binary(path, Section()) is not None


def test_segments(opened: Open) -> None:
    binary = opened(w.good())
    assert binary.format == "elf64 exec"
    assert [(s.address, s.memory_size, len(s.data), s.permissions, s.name) for s in binary.segments] == [
        (0x200000, 256, 256, RX, "text"),
        (0x400000, 16, 16, Permission.READ, "rodata"),
        (0x600000, 0x3000, 40, RW, "data"),
    ]
    assert [s.data.readonly for s in binary.segments] == [True, True, False]
    assert not any(s.mappable for s in binary.segments)


@pytest.mark.parametrize("flags", range(8))
def test_any_flags(opened: Open, flags: int) -> None:
    (segment,) = opened(w.Elf([w.Seg(0x1000, b"x", flags=flags)])).segments
    assert bool(segment.permissions & Permission.READ) == bool(flags & w.R)
    assert bool(segment.permissions & Permission.WRITE) == bool(flags & w.W)
    assert bool(segment.permissions & Permission.EXECUTE) == bool(flags & w.X)


@pytest.mark.parametrize("align", [0, 1, 2, 16, 0x200000, 1 << 62])
def test_any_alignment_of_a_fixed_file(opened: Open, align: int) -> None:
    (segment,) = opened(w.Elf([w.Seg(0x1001, b"abc", align=align, offset=64)])).segments
    assert segment.address == 0x1001
    assert len(segment.data) == 3


def test_segments_that_share_a_page_and_are_out_of_order(opened: Open) -> None:
    elf = w.Elf([w.Seg(0x1800, b"b" * 16, flags=w.R | w.W), w.Seg(0x1000, b"a" * 16), w.Seg(0x1810, b"", 0x7F0, w.R)])
    binary = opened(elf)
    assert [(s.address, bytes(s.data[:1])) for s in binary.segments] == [(0x1000, b"a"), (0x1800, b"b"), (0x1810, b"")]


def test_empty_segments_are_left_out(opened: Open) -> None:
    assert len(opened(w.Elf([w.Seg(0x1000), w.Seg(0x2000, b"a"), w.Seg(0x2000)])).segments) == 1


def test_bss_only(opened: Open) -> None:
    (segment,) = opened(w.Elf([w.Seg(0x1000, b"", 1 << 33, w.R | w.W)])).segments
    assert (segment.name, segment.memory_size, len(segment.data)) == ("bss", 1 << 33, 0)


@pytest.mark.parametrize("map_file", [True, False])
@pytest.mark.parametrize("offset", [1 << 40, 1 << 63, (1 << 64) - 1])
def test_offset_of_bss_means_nothing(opened: Open, offset: int, map_file: bool) -> None:
    (segment,) = opened(
        w.Elf([w.Seg(0x1000, b"", 64, w.R | w.W, offset=offset)], kind=w.ET_DYN), map_file=map_file
    ).segments
    assert (segment.memory_size, len(segment.data)) == (64, 0)


def test_high_half(opened: Open) -> None:
    base = 0xFFFFFFFF80000000
    binary = opened(w.Elf([w.Seg(base, b"abc")], entry=base + 1))
    assert (binary.segments[0].address, binary.entry) == (base, base + 1)


def test_entry_zero_means_none(opened: Open) -> None:
    assert opened(w.good(entry=0)).entry is None


def test_thread_local_data_is_told(opened: Open) -> None:
    assert opened(w.good(headers=[(w.PT_TLS, 0x600000, 8)])).format == "elf64 exec with thread-local data"


class TestBase:
    def pie(self, address: int = 0, align: int = 0x1000) -> w.Elf:
        text = w.Seg(address, b"x" * 16, align=align)
        return w.Elf([text], [w.Sym("x", address + 4), w.Sym("a", 5, section=w.ABS)], kind=w.ET_DYN, entry=address + 4)

    def test_default(self, opened: Open) -> None:
        binary = opened(self.pie())
        assert (binary.format, binary.segments[0].address, binary.entry) == ("elf64 static-pie", 0x400000, 0x400004)
        symbol, absolute = binary.symbols.find("x"), binary.symbols.find("a")
        assert symbol is not None
        assert absolute is not None
        assert (symbol.address, absolute.address) == (0x400004, 5)

    def test_linked_elsewhere_stays(self, opened: Open) -> None:
        assert opened(self.pie(0x200000)).segments[0].address == 0x200000

    @pytest.mark.parametrize("linked", [0, 0x200000])
    def test_chosen(self, opened: Open, linked: int) -> None:
        binary = opened(self.pie(linked), base="0xffffffff80000000")
        assert (binary.segments[0].address, binary.entry) == (0xFFFFFFFF80000000, 0xFFFFFFFF80000004)

    def test_alignment_is_kept(self, opened: Open) -> None:
        assert opened(self.pie(align=0x1000000)).segments[0].address == 0x1000000

    def test_alignment_beyond_the_largest_page(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="offset 0x70: p_align: 0x10000000000 is more than"):
            opened(self.pie(align=1 << 40))

    def test_no_room(self, opened: Open) -> None:
        elf = w.Elf([w.Seg(0, b"x", 0x2000)], kind=w.ET_DYN)
        with pytest.raises(BinaryError, match="choose a lower one"):
            opened(elf, base="0xfffffffffffff000")

    def test_fixed_files_ignore_it(self, opened: Open) -> None:
        assert opened(w.good(), base=0x7000000).segments[0].address == 0x200000


@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (4, "B", 1, "EI_CLASS: not a 64-bit file; build it with -m64"),
        (4, "B", 9, "EI_CLASS"),
        (5, "B", 2, "EI_DATA: not little-endian"),
        (6, "B", 0, "EI_VERSION"),
        (16, "H", 0, "e_type: neither"),
        (16, "H", 1, "relocatable object file; link it"),
        (16, "H", 4, "core dump"),
        (18, "H", 40, r"e_machine: not x86-64 or AArch64 \(ARM, 0x28\)"),
        (18, "H", 0xABCD, r"\(0xabcd, 0xabcd\)"),
        (20, "I", 0, "e_version"),
        (24, "Q", 0x199999, "e_entry: the entry point lies outside every segment"),
        (32, "Q", 1 << 63, "e_phoff"),
        (32, "Q", 8, "overlap the file header"),
        (40, "Q", 1 << 40, "e_shoff"),
        (52, "H", 63, "e_ehsize"),
        (54, "H", 32, "e_phentsize"),
        (56, "H", 0, "no program headers"),
        (56, "H", 0xFFFF, "more than 1024 program headers"),
        (58, "H", 40, "e_shentsize"),
        (60, "H", 0xFFFF, "e_shoff: the section headers reach beyond"),
        (64 + 8, "Q", 1 << 40, "p_filesz: p_offset and p_filesz reach beyond"),
        (64 + 16, "Q", 0x400000, "p_vaddr: the segment overlaps"),
        (64 + 16, "Q", (1 << 64) - 16, "p_memsz: the segment reaches the end of the address space"),
        (64 + 32, "Q", 257, "p_filesz: larger than p_memsz"),
        (64 + 40, "Q", 1 << 63, "max_memory"),
        (64 + 48, "Q", 3, "p_align: not a power of two"),
    ],
)
def test_damaged_header(opened: Open, tmp_path: Path, offset: int, layout: str, value: int, message: str) -> None:
    with pytest.raises(BinaryError, match=message) as caught:
        opened(patched(offset, layout, value))
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: offset 0x")


def test_no_segments(opened: Open) -> None:
    with pytest.raises(BinaryError, match="no PT_LOAD"):
        opened(w.Elf([w.Seg(0x1000)]))


def test_memory_is_bounded_by_the_configuration(opened: Open) -> None:
    elf = w.Elf([w.Seg(0x1000, b"", 0x2000), w.Seg(0x5000, b"", 0x2000)])
    opened(elf, max_memory=0x4000)
    with pytest.raises(BinaryError, match="max_memory"):
        opened(elf, max_memory=0x3FFF)


def test_magic_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\x7fEL")
    with pytest.raises(BinaryError, match="within the identification"):
        rift_load_binary(path, ElfConfig())


def test_unreadable_names(tmp_path: Path) -> None:
    for path in (tmp_path / "a\0b", tmp_path / ("x" * 5000), tmp_path / "loop"):
        if path.name == "loop":
            path.symlink_to(path)
        with pytest.raises(BinaryError, match="cannot be read"):
            rift_load_binary(path, ElfConfig())


class TestSharedLibraries:
    def build(self, *, needed: int, interpreter: bool) -> w.Elf:
        names = b"\0libc.so.6\0libm\x1b[31m.so\0"
        path = b"/lib64/ld.so\0"
        entries = w.dynamic(STRTAB=0x2000, STRSZ=len(names)) if not needed else b""
        for name in (11, 1)[2 - needed :]:
            entries = struct.pack("<QQ", w.DT["NEEDED"], name) + entries
        if needed:
            entries += w.dynamic(STRTAB=0x2000, STRSZ=len(names))
        elf = w.static_pie(names + path)
        elf.segments[2] = w.Seg(0x3000, entries, flags=w.R | w.W)
        elf.headers = [(w.PT_DYNAMIC, 0x3000, len(entries))]
        if interpreter:
            elf.headers.append((w.PT_INTERP, 0x2000 + len(names), len(path)))
        return elf

    def test_needed_libraries_are_named(self, opened: Open) -> None:
        with pytest.raises(
            BinaryError, match=r"shared library libc\.so\.6, libm\\x1b\[31m\.so.*-static-pie or -static"
        ):
            opened(self.build(needed=2, interpreter=True))

    def test_interpreter_alone_is_harmless(self, opened: Open) -> None:
        assert opened(self.build(needed=0, interpreter=True)).format == "elf64 pie"

    def test_interpreter_without_dynamic_section(self, opened: Open) -> None:
        elf = w.good(headers=[(w.PT_INTERP, 0x400000, 5)])
        elf.segments[1] = w.Seg(0x400000, b"/run\0")
        with pytest.raises(BinaryError, match="interpreter /run; link with -static"):
            opened(elf)

    def test_unterminated_interpreter(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="PT_INTERP"):
            opened(w.good(headers=[(w.PT_INTERP, 0x400000, 8)]))

    def test_two_dynamic_sections(self, opened: Open) -> None:
        elf = self.build(needed=0, interpreter=False)
        elf.headers *= 2
        with pytest.raises(BinaryError, match="second PT_DYNAMIC"):
            opened(elf)

    def test_dynamic_section_without_end(self, opened: Open) -> None:
        elf = self.build(needed=0, interpreter=False)
        elf.headers = [(w.PT_DYNAMIC, 0x3000, 32)]
        with pytest.raises(BinaryError, match="no DT_NULL"):
            opened(elf)


def test_file_without_section_headers(opened: Open) -> None:
    data = bytearray(w.good().build())
    data[40:48] = bytes(8)
    data[58:64] = bytes(6)
    binary = opened(bytes(data))
    assert len(binary.symbols) == 0
    assert binary.symbols.find("test") is None


def test_extended_section_count(opened: Open) -> None:
    data = bytearray(w.good().build())
    (start,) = struct.unpack_from("<Q", data, 40)
    (count,) = struct.unpack_from("<H", data, 60)
    struct.pack_into("<H", data, 60, 0)
    struct.pack_into("<Q", data, start + 32, count)
    assert opened(bytes(data)).symbols.find("test") is not None
    struct.pack_into("<Q", data, start + 32, 1 << 50)
    with pytest.raises(BinaryError, match="more than 65536 sections"):
        opened(bytes(data))


class TestConfig:
    def test_spelling(self) -> None:
        config = ElfConfig.model_validate({"base": "0x40000000", "max_memory": "2GiB", "map_file": False})
        assert (config.base, config.max_memory, config.map_file) == (0x40000000, 2 << 30, False)

    @pytest.mark.parametrize(
        "values", [{"base": 1}, {"base": -4096}, {"base": "x"}, {"max_memory": 0}, {"map_file": "maybe"}, {"other": 1}]
    )
    def test_refused(self, values: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            ElfConfig.model_validate(values)
