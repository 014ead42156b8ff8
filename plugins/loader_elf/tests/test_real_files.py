"""Files that compilers and linkers of this machine make, for either ISA."""

from __future__ import annotations

import platform
import shutil
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

import rift_loader_elf
from rift_core.errors import BinaryError
from rift_core.memory import Permission
from rift_core.testing.loader import GoodFile, LoaderConformance, image_bytes
from rift_core.testing.tools import require_tool, skip_here
from rift_loader_elf import ElfConfig, rift_load_binary

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from rift_core.binary import Binary

ISAS = ("x86_64", "aarch64")
HOST = "aarch64" if platform.machine() in ("aarch64", "arm64") else "x86_64"


@dataclass(frozen=True)
class Compiler:
    """A compiler's command, and the ISA that it makes code for."""

    isa: str
    command: tuple[str, ...]
    package: str

    @property
    def is_native(self) -> bool:
        return self.isa == HOST

    @property
    def name(self) -> str:
        return f"{self.isa}-{'clang' if self.command[0] == 'clang' else 'gcc'}"

    def require(self) -> None:
        """It and its linker, or a skip."""
        require_tool(self.command[0], package=self.package)
        if "-fuse-ld=lld" in self.command:
            require_tool("ld.lld", package="lld")


def _compilers(isa: str) -> list[Compiler]:
    if isa == HOST:
        return [Compiler(isa, (name,), name) for name in ("gcc", "clang")]
    cross = ("clang", f"--target={isa}-linux-gnu", "-fuse-ld=lld")
    gcc = f"gcc-{isa.replace('_', '-')}-linux-gnu"
    return [Compiler(isa, (f"{isa}-linux-gnu-gcc",), gcc), Compiler(isa, cross, "clang lld")]


COMPILERS = [compiler for isa in ISAS for compiler in _compilers(isa)]

SOURCE = """
static int one(int x) { return x + 1; }
static int two(int x) { return x * 2; }
int (*const constant_table[])(int) = {one, two};
int (*table[])(int) = {two, one};
__attribute__((noinline)) int shared(int x) { __asm__ volatile(""); return x - 1; }
const char *names[] = {"alpha", "beta"};
extern char missing[] __attribute__((weak));
char *weak_pointer = missing;
unsigned long used_memory;
char buffer[3000];
char *end_of_buffer = buffer + sizeof buffer;
int test(int i) {
    used_memory = 0xDEADBEEF;
    buffer[i & 1023] = names[i & 1][0];
    return table[i & 1](3) + constant_table[i & 1](4) + shared(i);
}
void _start(void) { for (;;) test(1); }
"""

# A layout for payloads that a host process loads without a dynamic linker: text, constants and data each in
# their own gigabyte-table slots, a large .bss, and everything discarded that only a dynamic linker wants.
SCRIPT = """
ENTRY(start)
SECTIONS {
    . = 0x200000;
    .text : ALIGN(0x4000) { *(.text*) }
    . = 0x400000;
    .rodata : ALIGN(0x4000) { *(.rodata*) }
    . = 0x600000;
    .data : ALIGN(0x4000) { *(.data*) }
    .bss : ALIGN(0x4000) { *(.bss*) *(COMMON) . += 0x10000000; }
    /DISCARD/ : { *(.note*) *(.dynamic*) *(.gnu*) *(.dynstr*) *(.dynsym*) *(.interp*) *(.eh_frame*) }
}
"""

FREESTANDING = ["-g", "-O1", "-ffreestanding", "-nostartfiles", "-nostdlib"]
HIDDEN = "-fvisibility=hidden"


def link(folder: Path, compiler: Compiler, *flags: str, source: str = SOURCE) -> Path:
    (folder / "payload.ld").write_text(SCRIPT)
    (folder / "payload.c").write_text(source)
    output = folder / "payload"
    command = [*compiler.command, *flags, "payload.c", "-o", output.name]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.fail(f"{' '.join(command)}: {done.stderr}")
    return output


@dataclass(frozen=True)
class Build:
    """Compiles the payload."""

    folder: Path
    compiler: Compiler

    def __call__(self, *flags: str, source: str = SOURCE) -> Path:
        return link(self.folder, self.compiler, *flags, source=source)


@pytest.fixture(params=COMPILERS, ids=lambda compiler: compiler.name)
def build(tmp_path: Path, request: pytest.FixtureRequest) -> Build:
    """With each compiler that is there."""
    request.param.require()
    return Build(tmp_path, request.param)


def load(path: Path, **config: object) -> Binary:
    binary = rift_load_binary(path, ElfConfig.model_validate(config))
    assert binary is not None
    return binary


def words(binary: Binary, name: str, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}Q", image_bytes(binary, address(binary, name), 8 * count))


def address(binary: Binary, name: str) -> int:
    symbol = binary.symbols.find(name)
    assert symbol is not None, name
    return symbol.address


def check_pointers(binary: Binary) -> None:
    """Every static pointer of the source points where it should."""
    one, two = address(binary, "one"), address(binary, "two")
    assert words(binary, "constant_table", 2) == (one, two)
    assert words(binary, "table", 2) == (two, one)
    alpha, beta = words(binary, "names", 2)
    assert image_bytes(binary, alpha, 6) == b"alpha\0"
    assert image_bytes(binary, beta, 5) == b"beta\0"
    assert words(binary, "weak_pointer", 1) == (0,)
    assert words(binary, "end_of_buffer", 1) == (address(binary, "buffer") + 3000,)
    near = binary.symbols.nearest(address(binary, "test") + 1)
    assert near is not None
    assert near.name == "test"


@pytest.mark.parametrize("visibility", [HIDDEN, "-fvisibility=default"])
@pytest.mark.parametrize("pie", ["-pie", "-no-pie", "-fPIE"])
def test_fixed_layout_without_dynamic_section(build: Build, pie: str, visibility: str) -> None:
    flags = ["-fPIE", "-pie"] if pie == "-pie" else [pie]
    source = SOURCE
    if build.compiler.isa == "aarch64":  # GNU ld leaves an undefined weak symbol to the dynamic linker there
        source = source.replace("char *weak_pointer = missing;", "char *weak_pointer;")
    binary = load(build(*FREESTANDING, *flags, visibility, "-Wl,-T,payload.ld", source=source))
    check_pointers(binary)
    assert address(binary, "test") in range(0x200000, 0x201000)
    assert address(binary, "used_memory") >= 0x604000
    lld = "-fuse-ld=lld" in build.compiler.command
    # There is no `start`: GNU ld then takes the first function, lld none.
    assert binary.entry is None if lld else binary.entry in range(0x200000, 0x201000)
    assert max(s.address + s.memory_size for s in binary.segments) >= 0x10604000
    assert sum(len(s.data) for s in binary.segments) < (0x30_0000 if lld else 0x1_0000)  # lld fills a gap
    for place, flag, expected in (
        (0x200000, Permission.EXECUTE, True),
        (0x400000, Permission.WRITE, False),
        (0x600000, Permission.WRITE, True),
    ):
        segment = next(s for s in binary.segments if s.address <= place < s.address + s.memory_size)
        assert bool(segment.permissions & flag) == expected


def test_symbolic_relocations_without_symbols_are_refused(build: Build) -> None:
    """The script discards .dynsym: the indices that are left in the relocations mean nothing."""
    with pytest.raises(BinaryError, match="-fvisibility=hidden"):
        load(build(*FREESTANDING, "-shared", "-fPIC", "-Wl,-T,payload.ld"))


def test_static(build: Build) -> None:
    binary = load(build(*FREESTANDING, "-static", "-no-pie"))
    assert binary.format == "elf64 exec"
    assert binary.isa == build.compiler.isa
    check_pointers(binary)


@pytest.mark.parametrize("base", [None, 0x10000000, "0xffffffff80000000"])
def test_static_pie(build: Build, base: int | str | None) -> None:
    binary = load(build(*FREESTANDING, "-static-pie", "-fPIE", HIDDEN), base=base)
    assert binary.format == "elf64 static-pie"
    first = int(base, 0) if isinstance(base, str) else base or 0x400000
    assert binary.segments[0].address == first
    assert binary.entry == address(binary, "_start")
    check_pointers(binary)


def test_static_pie_with_visible_symbols(build: Build) -> None:
    check_pointers(load(build(*FREESTANDING, "-static-pie", "-fPIE")))


def test_relr(build: Build) -> None:
    path = build(*FREESTANDING, "-static-pie", "-fPIE", HIDDEN, "-Wl,-z,pack-relative-relocs")
    headers = subprocess.run(["readelf", "-dW", path], capture_output=True, text=True, check=True).stdout
    if "(RELR)" not in headers:
        skip_here("this linker does not write DT_RELR (GNU ld 2.38 or later does)")
    check_pointers(load(path, base=0x7000000))


def test_shared_object_with_its_own_symbols(build: Build) -> None:
    """Symbolic relocations that .dynsym resolves; the slot of a call is one of them."""
    path = build(*FREESTANDING, "-shared", "-fPIC")
    binary = load(path)
    check_pointers(binary)
    listing = subprocess.run(["readelf", "-rW", path], capture_output=True, text=True, check=True).stdout
    slots = [line.split() for line in listing.splitlines() if "JUMP_SLO" in line and " shared " in line]
    assert len(slots) == 1, listing
    where = int(slots[0][0], 16) + address(binary, "test") - _file_address(path, "test")
    assert struct.unpack("<Q", image_bytes(binary, where, 8)) == (address(binary, "shared"),)


def _file_address(path: Path, name: str) -> int:
    """The symbol's address as the file has it."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        symbol = ELFFile(file).get_section_by_name(".symtab").get_symbol_by_name(name)[0]
        return int(symbol["st_value"])


def test_pie_with_an_interpreter_it_does_not_need(build: Build) -> None:
    binary = load(build(*FREESTANDING, "-pie", "-fPIE"))
    assert binary.format in ("elf64 pie", "elf64 static-pie")  # linkers without libraries may leave PT_INTERP out
    check_pointers(binary)


def test_undefined_symbol(build: Build) -> None:
    source = "extern int elsewhere; int *pointer = &elsewhere;"
    with pytest.raises(BinaryError, match=r"not defined in the file \(symbol \d+, elsewhere\)"):
        load(build(*FREESTANDING, "-shared", "-fPIC", source=source))


def test_program_that_needs_the_c_library(build: Build) -> None:
    if not build.compiler.is_native:
        skip_here("the C library of the other ISA need not be here")
    with pytest.raises(BinaryError, match=r"shared library libc\.so\.6.*-static-pie or -static"):
        load(build(source='#include <stdio.h>\nint main(void) { return puts("hello"); }\n'))


def test_object_file(build: Build) -> None:
    with pytest.raises(BinaryError, match="relocatable object file"):
        load(build("-c"))


def test_stripped(build: Build) -> None:
    path = build(*FREESTANDING, "-static-pie", "-fPIE", "-s")
    binary = load(path)
    assert binary.entry is not None
    assert binary.symbols.find("one") is None


class TestConformance(LoaderConformance):
    """Truncations and corruptions of a real static-PIE."""

    corruptions = 500
    isa = HOST

    @pytest.fixture
    def plugin(self) -> Any:
        return rift_loader_elf

    @pytest.fixture
    def good_file(self, tmp_path_factory: pytest.TempPathFactory) -> GoodFile:
        compiler = next((c for c in COMPILERS if c.isa == self.isa and shutil.which(c.command[0])), COMPILERS[0])
        compiler.require()
        path = link(tmp_path_factory.mktemp("real"), compiler, *FREESTANDING, "-static-pie", "-fPIE", HIDDEN)
        binary = load(path)
        names = ("one", "two", "test", "table", "used_memory", "_start")
        symbols = {name: address(binary, name) for name in names}
        table = struct.pack("<QQ", symbols["two"], symbols["one"])
        return GoodFile(path.read_bytes(), self.isa, binary.entry, {symbols["table"]: table}, {}, symbols)


class TestConformanceOfTheOtherIsa(TestConformance):
    isa = next(isa for isa in ISAS if isa != HOST)
