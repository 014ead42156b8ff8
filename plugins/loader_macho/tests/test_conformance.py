"""The loader contract, on files of several kinds."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any

import macho_writer as w
import pytest

import rift_loader_macho
from rift_core.memory import Permission
from rift_core.testing.loader import GoodFile, LoaderConformance
from rift_loader_macho import MachoConfig

if TYPE_CHECKING:
    from rift_core.plugin import Section

FIXED = {
    "memory": {w.TEXT: bytes(range(64)), w.RODATA: b"read only data", w.DATA: b"\x11" * 40 + bytes(100)},
    "permissions": {
        w.TEXT: Permission.READ | Permission.EXECUTE,
        w.RODATA: Permission.READ,
        w.DATA + 0x2FFF: Permission.READ | Permission.WRITE,
    },
    "symbols": {"test": w.TEXT + 64, "helper": w.TEXT, "counter": w.DATA, "_start": w.TEXT + 16, "bare": w.TEXT + 128},
}


class MachoConformance(LoaderConformance):
    own_formats = frozenset({"Mach-O", "fat Mach-O"})

    @pytest.fixture
    def plugin(self) -> Any:
        return rift_loader_macho


class TestFixed(MachoConformance):
    @pytest.fixture
    def good_file(self) -> GoodFile:
        return GoodFile(w.good().build(), "x86_64", w.TEXT + 16, **FIXED)  # type: ignore[arg-type]


class TestFixedMapped(TestFixed):
    """The same bytes through a private mapping."""

    @pytest.fixture
    def config(self, plugin: Any) -> Section:
        return MachoConfig(map_file=True)


class TestPreload(MachoConformance):
    """MH_PRELOAD, which no linker on Linux makes: no header in memory, an entry by LC_UNIXTHREAD."""

    @pytest.fixture
    def good_file(self) -> GoodFile:
        macho = w.good(kind=w.PRELOAD, cpu=w.ARM64, subtype=0, flags=1)
        return GoodFile(macho.build(), "aarch64", w.TEXT + 16, **FIXED)  # type: ignore[arg-type]


class TestRebased(MachoConformance):
    """A bundle, linked at 0 and rebased by opcodes."""

    @pytest.fixture
    def good_file(self) -> GoodFile:
        data = struct.pack("<QQQQ", 0x1004, 0x77, 0x8010, 0x8000).ljust(64, b"\0")
        base = 0x400000
        return GoodFile(
            w.movable(data=data, rebase=w.rebase((1, 0), (1, 16), (1, 24))).build(),
            "x86_64",
            None,
            {base + 0x8000: struct.pack("<QQQQ", base + 0x1004, 0x77, base + 0x8010, base + 0x8000) + bytes(64)},
            {base: Permission.READ | Permission.EXECUTE, base + 0x8000: Permission.READ | Permission.WRITE},
            {"start": base + 0x1000, "data": base + 0x8000},
        )


class TestChained(MachoConformance):
    """An executable of format 6 at its own address: the pointers must be rewritten nevertheless."""

    @pytest.fixture
    def good_file(self) -> GoodFile:
        base = 0x100000000
        data = struct.pack("<QQQ", 0x77, w.pointer(0x1004, 8), w.pointer(0x8000, high=0x5A)).ljust(64, b"\0")
        fixups = w.chains({1: (0x8000, [8])}, pointer_format=6)
        macho = w.movable(base, data=data, kind=w.EXECUTE, cpu=w.ARM64, chains=fixups, main=base + 0x1010)
        return GoodFile(
            macho.build(),
            "aarch64",
            base + 0x1010,
            {base + 0x8000: struct.pack("<QQQ", 0x77, base + 0x1004, base + 0x8000 | 0x5A << 56)},
            {base + 0x1000: Permission.READ | Permission.EXECUTE},
            {"start": base + 0x1000},
        )


class TestChainedAddresses(MachoConformance):
    """Format 2, slid, with an import that the file itself defines and one that may be missing."""

    @pytest.fixture
    def good_file(self) -> GoodFile:
        data = struct.pack("<QQQ", w.pointer(0x1004, 8), w.bound(1, 8, addend=4), w.bound(0)).ljust(64, b"\0")
        imports = [w.Import("_missing", 1, weak=True), w.Import("_data", -3)]
        macho = w.movable(data=data, chains=w.chains({1: (0x8000, [0])}, imports), libraries=["/usr/lib/libx.dylib"])
        base = 0x400000
        return GoodFile(
            macho.build(), "x86_64", None, {base + 0x8000: struct.pack("<QQQ", base + 0x1004, base + 0x8004, 0)}
        )


class TestUniversal(MachoConformance):
    @pytest.fixture
    def good_file(self) -> GoodFile:
        other = w.movable(cpu=w.ARM64).build()
        data = w.universal([(w.ARM64, 0, other), (w.X86_64, 3, w.good().build())])
        return GoodFile(data, "x86_64", w.TEXT + 16, **FIXED, magic_size=12)  # type: ignore[arg-type]

    isa = "x86_64"


class TestUniversalOther(MachoConformance):
    """A wide one, whose other image is taken, through a mapping."""

    isa = "aarch64"

    @pytest.fixture
    def config(self, plugin: Any) -> Section:
        return MachoConfig(map_file=True)

    @pytest.fixture
    def good_file(self) -> GoodFile:
        data = w.universal(
            [(w.ARM64, 2, b"\0" * 64), (w.X86_64, 3, w.good().build()), (w.ARM64, 0, w.movable(cpu=w.ARM64).build())],
            wide=True,
        )
        return GoodFile(data, "aarch64", None, {0x401000: bytes(64)}, {}, {"start": 0x401000}, magic_size=12)
