"""The loader contract, on files of several kinds."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import elf_writer as w
import pytest

import rift_loader_elf
from rift_core.memory import Permission
from rift_core.testing.loader import GoodFile, LoaderConformance
from rift_loader_elf import ElfConfig

if TYPE_CHECKING:
    from rift_core.plugin import Section


class ElfConformance(LoaderConformance):
    @pytest.fixture
    def plugin(self) -> Any:
        return rift_loader_elf


class TestFixed(ElfConformance):
    @pytest.fixture
    def good_file(self) -> GoodFile:
        return GoodFile(
            data=w.good().build(),
            isa="x86_64",
            entry=0x200010,
            memory={0x200000: bytes(range(64)), 0x400000: b"read only data", 0x600000: b"\x11" * 40 + bytes(100)},
            permissions={
                0x200000: Permission.READ | Permission.EXECUTE,
                0x400000: Permission.READ,
                0x602FFF: Permission.READ | Permission.WRITE,
            },
            symbols={"test": 0x200040, "helper": 0x200000, "counter": 0x600000, "_size": 0x1234},
        )


class TestFixedMapped(TestFixed):
    """The same bytes through a private mapping."""

    @pytest.fixture
    def config(self, plugin: Any) -> Section:
        return ElfConfig(map_file=True)


class TestStaticPie(ElfConformance):
    """Relocations from PT_DYNAMIC: RELR, RELATIVE, and symbols; one word in .bss."""

    @pytest.fixture
    def good_file(self) -> GoodFile:
        names = b"\0data\0weak\0"
        symbols = bytes(24)
        symbols += w.symbol_bytes(w.Sym("data", 0x4000, 64, w.OBJECT), 1)
        symbols += w.symbol_bytes(w.Sym("weak", 0, 0, w.NOTYPE, w.WEAK, w.UNDEF), 6)
        relative = w.rela(0x4000, 8, 0x1004) + w.rela(0x4008, 1, 8, symbol=1) + w.rela(0x4010, 6, 0, symbol=2)
        relative += w.rela(0x4100, 8, 0x1234)
        relr = struct.pack("<QQ", 0x4020, 0b101)  # 0x4020, and of the words behind it the second: 0x4030
        tables = symbols + names.ljust(16, b"\0") + relative + relr
        at = 0x2000 + len(symbols)
        elf = w.static_pie(
            tables,
            data=bytes(0x20) + struct.pack("<QQQ", 0x10, 0x77, 0x20) + bytes(8),
            memory_size=0x2000,
            SYMTAB=0x2000,
            SYMENT=24,
            STRTAB=at,
            STRSZ=len(names),
            RELA=at + 16,
            RELASZ=len(relative),
            RELAENT=24,
            RELR=at + 16 + len(relative),
            RELRSZ=16,
            RELRENT=8,
        )
        base = 0x400000
        return GoodFile(
            data=elf.build(),
            isa="x86_64",
            entry=base + 0x1000,
            memory={
                base + 0x4000: struct.pack("<QQQ", base + 0x1004, base + 0x4008, 0),
                base + 0x4020: struct.pack("<QQQ", base + 0x10, 0x77, base + 0x20),
                base + 0x40F8: struct.pack("<QQQ", 0, base + 0x1234, 0),
            },
            permissions={base + 0x1000: Permission.READ | Permission.EXECUTE},
            symbols={"_start": base + 0x1000, "data": base + 0x4000},
        )


class TestAarch64(ElfConformance):
    @pytest.fixture
    def good_file(self) -> GoodFile:
        names = b"\0data\0"
        symbols = bytes(24) + w.symbol_bytes(w.Sym("data", 0x4000, 64, w.OBJECT), 1)
        table = w.rela(0x4000, 1027, 0x1004) + w.rela(0x4008, 257, 8, 1) + w.rela(0x4010, 1025, 16, 1)
        table += w.rela(0x4018, 0) + w.rela(0x4018, 256) + w.rela(0x4020, 1026, 0, 1)
        tables = symbols + names.ljust(8, b"\0") + table
        elf = w.static_pie(
            tables,
            machine=w.EM_AARCH64,
            SYMTAB=0x2000,
            STRTAB=0x2030,
            STRSZ=len(names),
            RELA=0x2038,
            RELASZ=len(table) - 24,
            RELAENT=24,
            JMPREL=0x2038 + len(table) - 24,
            PLTRELSZ=24,
            PLTREL=7,
        )
        base = 0x400000
        return GoodFile(
            data=elf.build(),
            isa="aarch64",
            entry=base + 0x1000,
            memory={
                base + 0x4000: struct.pack("<QQQQQ", base + 0x1004, base + 0x4008, base + 0x4010, 0, base + 0x4000)
            },
            symbols={"_start": base + 0x1000},
        )
