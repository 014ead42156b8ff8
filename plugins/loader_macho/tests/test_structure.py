"""What is loaded where, and what is refused with which sentence."""

from __future__ import annotations

import struct
import subprocess
import sys
from typing import TYPE_CHECKING

import macho_writer as w
import pytest
from pydantic import ValidationError

from rift_core.errors import BinaryError
from rift_core.memory import Permission
from rift_core.plugin import Section
from rift_loader_macho import MachoConfig, rift_load_binary, rift_plugin

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from rift_core.binary import Binary

    Open = Callable[..., Binary]

RX, RW = Permission.READ | Permission.EXECUTE, Permission.READ | Permission.WRITE


def patched(offset: int, layout: str, value: int, macho: w.Macho | None = None) -> bytes:
    data = bytearray((macho or w.good()).build())
    struct.pack_into("<" + layout, data, offset, value)
    return bytes(data)


def test_the_module_is_light() -> None:
    code = (
        "import sys, rift_loader_macho; rift_loader_macho.rift_plugin();"
        "sys.exit(any(name.startswith(('macholib', 'rift_loader_macho._native')) for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    info = rift_plugin()
    assert (info.kind, info.name, info.config) == ("loader", "macho", MachoConfig)


def test_plain_section_means_defaults(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(w.good().build())
    assert rift_load_binary(path, Section(), "auto") is not None


def test_segments(opened: Open) -> None:
    binary = opened(w.good(linkedit=False, symbols=[]))
    assert binary.format == "mach-o execute"
    assert [(s.address, s.memory_size, len(s.data), s.permissions, s.name) for s in binary.segments] == [
        (w.TEXT, 256, 256, RX, "__TEXT"),
        (w.RODATA, 16, 16, Permission.READ, "__CONST"),
        (w.DATA, 0x3000, 40, RW, "__DATA"),
    ]
    assert [s.data.readonly for s in binary.segments] == [True, True, False]
    assert not any(s.mappable for s in binary.segments)


def test_linkedit_is_a_segment_like_others(opened: Open) -> None:
    assert (opened(w.good()).segments[-1].name, opened(w.good()).segments[-1].permissions) == (
        "__LINKEDIT",
        Permission.READ,
    )


@pytest.mark.parametrize("protection", range(8))
def test_any_protection_and_name(opened: Open, protection: int) -> None:
    macho = w.Macho([w.Seg("\x1b[1mnäm", 0x1000, b"x", protection=protection)], linkedit=False)
    (segment,) = opened(macho).segments
    assert segment.name == "\\x1b[1mnäm"
    assert bool(segment.permissions & Permission.READ) == bool(protection & w.R)
    assert bool(segment.permissions & Permission.WRITE) == bool(protection & w.W)
    assert bool(segment.permissions & Permission.EXECUTE) == bool(protection & w.X)


def test_name_of_sixteen_bytes(opened: Open) -> None:
    assert opened(w.Macho([w.Seg("abcdefghijklmnop", 0x1000, b"x")])).segments[0].name == "abcdefghijklmnop"


def test_holes_take_no_memory(opened: Open) -> None:
    macho = w.good()
    macho.segments[0] = w.Seg("__ANY", 0, memory_size=0x200000, protection=0)
    macho.segments.append(w.Seg("__HIGH", 1 << 40, memory_size=1 << 40, protection=0))
    assert opened(macho, max_memory="64KiB").segments[0].address == w.TEXT
    assert opened(macho).segments[-1].name == "__LINKEDIT"


def test_a_hole_may_not_be_used(opened: Open) -> None:
    macho = w.good()
    macho.segments[0].memory_size = w.TEXT + 1
    with pytest.raises(BinaryError, match="vmaddr: the segment overlaps another one"):
        opened(macho)
    with pytest.raises(BinaryError, match="pc: the entry point lies outside every segment"):
        opened(w.good(thread=0x80000))


def test_zero_fill_only(opened: Open) -> None:
    macho = w.Macho([w.Seg("__BSS", 0x1000, b"", 1 << 33, w.R | w.W, offset=1 << 60)], linkedit=False)
    (segment,) = opened(macho).segments
    assert (segment.memory_size, len(segment.data)) == (1 << 33, 0)


def test_segments_that_share_a_page_and_are_out_of_order(opened: Open) -> None:
    macho = w.Macho(
        [
            w.Seg("b", 0x1800, b"b" * 16, protection=w.R | w.W),
            w.Seg("a", 0x1000, b"a" * 16),
            w.Seg("c", 0x1810, b"", 0x7F0),
        ],
        linkedit=False,
    )
    assert [(s.address, s.name) for s in opened(macho).segments] == [(0x1000, "a"), (0x1800, "b"), (0x1810, "c")]


def test_high_half(opened: Open) -> None:
    base = 0xFFFFFFFF80000000
    binary = opened(w.Macho([w.Seg("__TEXT", base, b"abc")], thread=base + 1, linkedit=False))
    assert (binary.segments[0].address, binary.entry) == (base, base + 1)


class TestEntry:
    @pytest.mark.parametrize("cpu", [w.X86_64, w.ARM64])
    def test_by_registers(self, opened: Open, cpu: int) -> None:
        assert opened(w.good(cpu=cpu, subtype=0)).entry == w.TEXT + 16

    def test_by_offset(self, opened: Open) -> None:
        macho = w.movable(0x100000000, kind=w.EXECUTE, main=0x100001020)
        assert opened(macho).entry == 0x100001020
        assert opened(macho, base=0x10000000).entry == 0x10001020

    def test_none(self, opened: Open) -> None:
        assert opened(w.good(thread=None)).entry is None
        assert opened(w.good(thread=0)).entry is None

    def test_outside(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="pc: the entry point lies outside every segment"):
            opened(w.good(thread=w.TEXT - 1))
        macho = w.good(thread=None)
        macho.commands = [w.command(w.LC_MAIN, struct.pack("<QQ", 1 << 40, 0))]
        with pytest.raises(BinaryError, match="entryoff: the entry point lies outside the file's part"):
            opened(macho)

    def test_two(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="a second entry point"):
            opened(w.good(main=w.TEXT))

    def test_registers_of_another_cpu(self, opened: Open) -> None:
        macho = w.good(thread=None, commands=[w.thread(w.ARM64, w.TEXT)])
        with pytest.raises(BinaryError, match="LC_UNIXTHREAD: no program counter of this CPU"):
            opened(macho)

    def test_registers_behind_others(self, opened: Open) -> None:
        known = w.thread(w.X86_64, w.TEXT + 4)[8:]
        other = struct.pack("<II", 5, 2) + bytes(8)
        assert opened(w.good(thread=None, commands=[w.command(5, other + known)])).entry == w.TEXT + 4
        endless = struct.pack("<II", 4, 0x40000000) + bytes(300)
        with pytest.raises(BinaryError, match="count: the registers reach beyond the command"):
            opened(w.good(thread=None, commands=[w.command(5, endless)]))


class TestBase:
    @pytest.mark.parametrize(("cpu", "isa"), [(w.X86_64, "x86_64"), (w.ARM64, "aarch64")])
    def test_default(self, opened: Open, cpu: int, isa: str) -> None:
        binary = opened(w.movable(cpu=cpu))
        assert (binary.format, binary.isa, binary.segments[0].address) == ("mach-o bundle", isa, 0x400000)
        symbol = binary.symbols.find("start")
        assert symbol is not None
        assert symbol.address == 0x401000

    def test_linked_elsewhere_stays(self, opened: Open) -> None:
        assert opened(w.movable(0x100000000, kind=w.EXECUTE)).segments[0].address == 0x100000000

    @pytest.mark.parametrize("linked", [0, 0x200000, 0xFFFFFFFF90000000])
    def test_chosen(self, opened: Open, linked: int) -> None:
        binary = opened(w.movable(linked, rebase=w.rebase((1, 0))), base="0xffffffff80000000")
        assert binary.segments[0].address == 0xFFFFFFFF80000000

    def test_alignment_is_kept(self, opened: Open) -> None:
        macho = w.movable()
        macho.segments[0].sections[0].align = 24
        assert opened(macho).segments[0].address == 0x1000000
        assert opened(w.movable(), base=0x401000).segments[0].address == 0x401000
        assert opened(w.movable(cpu=w.ARM64), base=0x401000).segments[0].address == 0x404000

    def test_no_room(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="choose a lower one"):
            opened(w.movable(), base="0xfffffffffffff000")

    def test_fixed_files_ignore_it(self, opened: Open) -> None:
        assert opened(w.good(), base=0x7000000).segments[0].address == w.TEXT
        assert opened(w.movable(0x200000, kind=w.EXECUTE, flags=0x85), base=0x7000000).segments[0].address == 0x200000


# Places in w.good(): header 32 bytes, __PAGEZERO 72, __TEXT from 104 with its section from 176.
@pytest.mark.parametrize(
    ("offset", "layout", "value", "message"),
    [
        (4, "I", w.I386, r"cputype: not x86_64 or arm64 \(i386, 7\)"),
        (4, "I", w.POWERPC, r"\(PowerPC, 0x12\)"),
        (4, "I", 0xABCD, r"cputype: not x86_64 or arm64 \(0xabcd\)"),
        (12, "I", w.OBJECT, "an object file; link it"),
        (12, "I", w.CORE, "core dump"),
        (12, "I", w.DYLIB, "link it with -bundle instead of -dylib"),
        (12, "I", w.DSYM, "debugging symbols"),
        (12, "I", 99, r"filetype: neither an executable"),
        (16, "I", 4097, "ncmds: more than 4096 load commands"),
        (16, "I", 20, "ncmds: there is no room"),
        (20, "I", 1 << 19, "sizeofcmds: the load commands reach beyond"),
        (20, "I", 1 << 24, "sizeofcmds: more than 1 MiB"),
        (36, "I", 4, "cmdsize: smaller than a command"),
        (36, "I", 74, "cmdsize: smaller than a command, or no multiple of 4"),
        (36, "I", 1 << 16, "cmdsize: the command reaches beyond sizeofcmds"),
        (36, "I", 64, "cmdsize: too small for a segment"),
        (32, "I", 1, "a 32-bit segment in a 64-bit file"),
        (32, "I", 0x800000FF, "an unknown load command which a loader is required to understand"),
        (96, "I", 1, "nsects: the command's size does not fit its sections"),
        (104 + 24, "Q", w.MASK - 15, "vmsize: the segment reaches the end of the address space"),
        (104 + 32, "Q", 1 << 62, "max_memory"),
        (104 + 40, "Q", 1 << 40, "filesize: fileoff and filesize reach beyond"),
        (104 + 48, "Q", 257, "filesize: larger than vmsize"),
        (104 + 68, "I", 8, "flags: the segment is encrypted"),
        (176 + 32, "Q", w.TEXT + 1, "addr: the section reaches beyond its segment"),
        (176 + 40, "Q", w.MASK, "addr: the section reaches beyond its segment"),
        (176 + 48, "I", 0xFFFFFF, "offset: offset and size of the section reach beyond"),
        (176 + 52, "I", 31, "align: sections are not aligned"),
    ],
)
def test_damaged_header(opened: Open, tmp_path: Path, offset: int, layout: str, value: int, message: str) -> None:
    with pytest.raises(BinaryError, match=message) as caught:
        opened(patched(offset, layout, value))
    assert str(caught.value).startswith(f"{tmp_path / 'file'}: offset 0x")


def test_overlap(opened: Open) -> None:
    macho = w.good()
    macho.segments[1] = w.Seg("__TEXT", w.RODATA + 15, bytes(16), protection=w.R | w.X)
    with pytest.raises(BinaryError, match=r"vmaddr: the segment overlaps another one \(0x40000f\)"):
        opened(macho)


def test_arm64e_is_refused_with_a_reason(opened: Open) -> None:
    with pytest.raises(BinaryError, match=r"cpusubtype: arm64e: its pointers are signed .* -arch arm64"):
        opened(w.movable(cpu=w.ARM64, subtype=0x80000002))


@pytest.mark.parametrize(
    ("magic", "message"),
    [
        (b"\xce\xfa\xed\xfe", "not a 64-bit file"),
        (b"\xfe\xed\xfa\xce", "not little-endian"),
        (b"\xfe\xed\xfa\xcf", "not little-endian"),
    ],
)
def test_other_kinds_of_mach_o(opened: Open, magic: bytes, message: str) -> None:
    with pytest.raises(BinaryError, match=f"offset 0x0: magic: {message}"):
        opened(magic + w.good().build()[4:])


@pytest.mark.parametrize("length", [1, 2, 3])
@pytest.mark.parametrize("magic", [b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe", b"\xfe\xed\xfa\xce"])
def test_magic_cut_short(opened: Open, magic: bytes, length: int) -> None:
    with pytest.raises(BinaryError, match="within the magic number"):
        opened(magic[:length])


@pytest.mark.parametrize("length", [4, 12, 31])
def test_header_cut_short(opened: Open, length: int) -> None:
    with pytest.raises(BinaryError, match="the image ends within its 32-byte header"):
        opened(w.good().build()[:length])


def test_no_segments(opened: Open) -> None:
    with pytest.raises(BinaryError, match="no segment takes any memory"):
        opened(w.Macho([w.Seg("__PAGEZERO", 0, memory_size=0x1000, protection=0)], linkedit=False))


def test_memory_is_bounded_by_the_configuration(opened: Open) -> None:
    macho = w.Macho([w.Seg("a", 0x1000, b"", 0x2000), w.Seg("b", 0x5000, b"", 0x2000)], linkedit=False)
    opened(macho, max_memory=0x4000)
    with pytest.raises(BinaryError, match="max_memory"):
        opened(macho, max_memory=0x3FFF)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (0x1D, "LC_CODE_SIGNATURE"), (0x1E, "LC_SEGMENT_SPLIT_INFO"), (0x26, "LC_FUNCTION_STARTS"),
        (0x29, "LC_DATA_IN_CODE"), (0x80000033, "LC_DYLD_EXPORTS_TRIE"), (0x80000034, "LC_DYLD_CHAINED_FIXUPS"),
    ],
)  # fmt: skip
def test_tables_lie_inside_the_file(opened: Open, kind: int, name: str) -> None:
    if kind != 0x80000034:  # whose contents are checked as well
        assert opened(w.good(commands=[w.command(kind, struct.pack("<II", 0, 16))])).entry is not None
    with pytest.raises(BinaryError, match="dataoff: the table reaches beyond the end of the file"):
        opened(w.good(commands=[w.command(kind, struct.pack("<II", 16, 1 << 20))]))
    with pytest.raises(BinaryError, match="cmdsize: too small"):
        opened(w.good(commands=[w.command(kind, b"")]))


@pytest.mark.parametrize(
    ("kind", "count", "at", "name"),
    [
        (w.LC_SYMTAB, 4, 0, "symoff"), (w.LC_SYMTAB, 4, 2, "stroff"),
        *((w.LC_DYSYMTAB, 18, place, name) for place, name in (
            (6, "tocoff"), (8, "modtaboff"), (10, "extrefsymoff"), (12, "indirectsymoff"), (14, "extreloff"),
            (16, "locreloff"))),
        *((w.LC_DYLD_INFO_ONLY, 10, place, name) for place, name in (
            (0, "rebase_off"), (2, "bind_off"), (4, "weak_bind_off"), (6, "lazy_bind_off"), (8, "export_off"))),
    ],
)  # fmt: skip
def test_tables_of_symbols_and_opcodes_lie_inside_the_file(
    opened: Open, kind: int, count: int, at: int, name: str
) -> None:
    values = [0] * count
    values[at] = values[at + 1] = 1 << 20
    with pytest.raises(BinaryError, match=f"{name}: the table reaches beyond the end of the file"):
        opened(w.good(symbols=[], commands=[w.command(kind, struct.pack(f"<{count}I", *values))]))
    nothing = w.command(kind, bytes(4 * count))
    assert opened(w.good(symbols=[], commands=[nothing])).entry is not None
    with pytest.raises(BinaryError, match="a second command of this kind"):
        opened(w.good(symbols=[], commands=[nothing, nothing]))


def test_encrypted(opened: Open) -> None:
    assert opened(w.good(commands=[w.command(0x2C, struct.pack("<IIII", 0, 0, 0, 0))])).entry is not None
    with pytest.raises(BinaryError, match="cryptid: the file is encrypted"):
        opened(w.good(commands=[w.command(0x2C, struct.pack("<IIII", 0, 0, 1, 0))]))


def test_libraries_that_nothing_is_used_of_are_harmless(opened: Open) -> None:
    """Apple's linker writes libSystem into every executable."""
    assert opened(w.movable(libraries=["/usr/lib/libSystem.B.dylib"])).segments


def test_thread_local_data_is_told(opened: Open) -> None:
    macho = w.good()
    macho.segments[3].sections[1].kind = w.THREAD_ZEROFILL
    assert opened(macho).format == "mach-o execute with thread-local data"


def test_unreadable_names(tmp_path: Path) -> None:
    for path in (tmp_path / "a\0b", tmp_path / ("x" * 5000), tmp_path / "loop"):
        if path.name == "loop":
            path.symlink_to(path)
        with pytest.raises(BinaryError, match="cannot be read"):
            rift_load_binary(path, MachoConfig(), "auto")


class TestUniversal:
    X86 = (w.X86_64, 3, w.good().build())
    ARM = (w.ARM64, 0, w.movable(cpu=w.ARM64).build())
    ARM64E = (w.ARM64, 0x80000002, w.movable(cpu=w.ARM64, subtype=2).build())
    OLD = (w.I386, 3, b"\xce\xfa\xed\xfe" + bytes(28))

    @pytest.mark.parametrize("wide", [False, True])
    @pytest.mark.parametrize("isa", ["x86_64", "aarch64"])
    def test_the_wanted_image(self, opened: Open, isa: str, wide: bool) -> None:
        binary = opened(w.universal([self.OLD, self.X86, self.ARM64E, self.ARM], wide=wide), isa)
        assert binary.isa == isa
        kind = "execute" if isa == "x86_64" else "bundle"
        assert binary.format == f"mach-o {kind} of a universal file (i386, x86_64, arm64e, arm64)"

    @pytest.mark.parametrize(("machine", "isa"), [("arm64", "aarch64"), ("x86_64", "x86_64"), ("riscv64", "aarch64")])
    def test_the_hosts_image_else_the_first(
        self, opened: Open, monkeypatch: pytest.MonkeyPatch, machine: str, isa: str
    ) -> None:
        monkeypatch.setattr("platform.machine", lambda: machine)
        assert opened(w.universal([self.ARM, self.X86])).isa == isa

    def test_there_is_none(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="holds i386, x86_64, and nothing for aarch64"):
            opened(w.universal([self.OLD, self.X86]), "aarch64")
        with pytest.raises(BinaryError, match=r"holds arm64e, i386, and nothing for .*add an image for arm64"):
            opened(w.universal([self.ARM64E, self.OLD]))

    def test_an_image_of_another_cpu_than_named(self, opened: Open) -> None:
        with pytest.raises(BinaryError, match="not of the CPU that the universal file names"):
            opened(w.universal([(w.X86_64, 3, self.ARM[2])]), "x86_64")

    def test_offsets_in_messages_are_those_of_the_file(self, opened: Open) -> None:
        image = patched(12, "I", w.OBJECT)
        data = w.universal([(w.X86_64, 3, image)])
        with pytest.raises(BinaryError, match="offset 0x400c: filetype"):
            opened(data)

    @pytest.mark.parametrize(
        ("offset", "value", "message"),
        [
            (4, 0, "offset 0x4: nfat_arch: the universal file holds no image"),
            (4, 65, "nfat_arch: more than 64 images"),
            (8 + 8, 0, "offset 0x10: fat_arch.offset: the image overlaps the header"),
            (8 + 8, 1 << 31, "fat_arch.offset: offset and size reach beyond"),
            (8 + 12, 1 << 31, "fat_arch.offset: offset and size reach beyond"),
            (8 + 12, 0, "fat_arch.size: the image is empty"),
            (28 + 8, 0x4010, "fat_arch.offset: the image overlaps another one"),
        ],
    )
    def test_damage(self, opened: Open, offset: int, value: int, message: str) -> None:
        data = bytearray(w.universal([self.X86, self.ARM]))
        struct.pack_into(">I", data, offset, value)
        with pytest.raises(BinaryError, match=message):
            opened(bytes(data))

    @pytest.mark.parametrize("length", [4, 7, 8, 40])
    def test_cut_short(self, opened: Open, length: int) -> None:
        with pytest.raises(BinaryError, match="the file ends within"):
            opened(w.universal([self.X86, self.ARM])[:length])

    def test_java_is_foreign(self, tmp_path: Path) -> None:
        path = tmp_path / "Main.class"
        path.write_bytes(bytes.fromhex("cafebabe 0000 0041 001d 0a 0002 0003") + bytes(200))
        assert rift_load_binary(path, MachoConfig(), "auto") is None


class TestConfig:
    def test_spelling(self) -> None:
        config = MachoConfig.model_validate({"base": "0x40000000", "max_memory": "2GiB", "map_file": False})
        assert (config.base, config.max_memory, config.map_file) == (0x40000000, 2 << 30, False)

    @pytest.mark.parametrize(
        "values", [{"base": 1}, {"base": -4096}, {"base": "x"}, {"max_memory": 0}, {"map_file": "maybe"}, {"other": 1}]
    )
    def test_refused(self, values: dict[str, object]) -> None:
        with pytest.raises(ValidationError):
            MachoConfig.model_validate(values)
