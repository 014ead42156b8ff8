"""The decoder of x86-64 instructions agrees with capstone, and what it says they compute with the CPU itself."""

from __future__ import annotations

import ctypes
import itertools
import platform
import random
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rift_core.testing.tools import require_tool, skip_here

if TYPE_CHECKING:
    from collections.abc import Iterator

capstone = pytest.importorskip("capstone", reason="capstone is missing: pip install 'riftvm-core[disassembly]'")
from capstone import x86_const as x86  # noqa: E402, behind the look for it

NATIVE = Path(__file__).resolve().parents[1] / "src" / "rift_hvf" / "native"
HELPER = Path(__file__).parent / "native" / "arithmetic_of_the_cpu.c"

SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
NO_REGISTER = 0xFF

# enum x86_operation of hvf_x86_64_instruction.h
OPERATIONS = (
    "none", "load", "load-signed", "load-vector", "store", "store-vector", "store-immediate", "store-flag",
    "add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "inc", "dec", "not", "neg", "xchg", "xadd",
    "cmpxchg", "bt", "bts", "btr", "btc", "movs", "stos", "lods", "ins", "outs",
)  # fmt: skip
MOVES = {"mov", "movabs", "movnti"}
VECTOR_MOVES = {
    "movups", "movupd", "movss", "movsd", "movaps", "movapd", "movntps", "movntpd", "movd", "movq", "movdqa", "movdqu",
    "movntdq",
}  # fmt: skip
STRINGS = {
    f"{name}{suffix}": name for name in ("movs", "stos", "lods", "ins", "outs") for suffix in ("b", "w", "d", "q")
}


class Instruction(ctypes.Structure):
    """``struct x86_instruction``."""

    _fields_ = (
        *((name, ctypes.c_uint8) for name in (
            "length", "operation", "direction", "size", "width", "reg", "high", "condition", "repeated", "address_size",
            "segment", "base", "index", "scale", "rip_relative",
        )),
        ("immediate", ctypes.c_uint64),
        ("displacement", ctypes.c_uint64),
    )  # fmt: skip


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The two C files, and the CPU's own arithmetic."""
    require_tool("gcc")
    if platform.machine() != "x86_64":
        skip_here("the CPU to compare with is not an x86-64 one")
    path = tmp_path_factory.mktemp("native") / "instructions.so"
    names = ("hvf_x86_64_instruction.c", "hvf_x86_64_encoding.c", "hvf_x86_64_arithmetic.c")
    sources = [*(NATIVE / name for name in names), HELPER]
    flags = ["-shared", "-fPIC", "-O1", "-std=gnu11", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
    subprocess.run(["gcc", *flags, "-o", path, *sources], check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.rift_hvf_x86_instruction.argtypes = [ctypes.c_char_p, ctypes.c_uint32, ctypes.POINTER(Instruction)]
    for name in ("rift_hvf_x86_arithmetic", "arithmetic_of_the_cpu"):
        function = getattr(loaded, name)
        function.argtypes = [ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_void_p]
        function.restype = ctypes.c_uint64
    return loaded


def decode(library: Any, code: bytes) -> Instruction | None:
    """The instruction, or None where the decoder refuses."""
    instruction = Instruction()
    return instruction if library.rift_hvf_x86_instruction(code, len(code), instruction) == 0 else None


@pytest.fixture(scope="module")
def disassembler() -> Any:
    made = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    made.detail = True
    return made


def candidates() -> Iterator[bytes]:
    """Every opcode of one and two bytes in front of every ModRM byte, with prefixes; then all SIB bytes."""
    prefixes = [b"", b"\x66", b"\x48", b"\xf3", b"\xf2"]
    more = [b"\x44", b"\x41", b"\x42", b"\x4f", b"\x66\x48", b"\x67", b"\x64"]
    opcodes = [bytes([byte]) for byte in range(256)] + [bytes([0x0F, byte]) for byte in range(256)]
    tail = bytes.fromhex("858788898a8b8c8d8e8f")
    for opcode in opcodes:
        for prefix, modrm in itertools.product(prefixes, range(256)):
            if modrm < 0xC0 or modrm % 16 == 0:  # registers in a few cases: they are refused all the same
                yield prefix + opcode + bytes([modrm]) + tail
        for prefix, modrm in itertools.product(more, range(0, 0xC0, 7)):
            yield prefix + opcode + bytes([modrm]) + tail
    for prefix, opcode, modrm, sib in itertools.product(
        (b"", b"\x43", b"\x67", b"\x65\x4b"), (b"\x8b", b"\x89", b"\xc6", b"\x0f\xb6"), (0x04, 0x44, 0x84), range(256)
    ):
        yield prefix + opcode + bytes([modrm, sib]) + tail


def memory_operand(instruction: Any) -> Any:
    return next((o for o in instruction.operands if o.type == x86.X86_OP_MEM), None)


def expected_operation(instruction: Any) -> str:
    """What the decoder must call it: capstone's mnemonic, and which operand is memory."""
    name = instruction.mnemonic.split()[-1]
    operands = instruction.operands
    if name in STRINGS and instruction.opcode[0] != 0x0F:  # not the MOVSD of SSE2
        return STRINGS[name]
    to_memory = operands[0].type == x86.X86_OP_MEM
    if name in MOVES:
        if not to_memory:
            return "load"
        return "store-immediate" if operands[1].type == x86.X86_OP_IMM else "store"
    if name in VECTOR_MOVES:
        return "store-vector" if to_memory else "load-vector"
    if name == "movzx":
        return "load"
    if name in ("movsx", "movsxd"):
        return "load-signed"
    if name.startswith("set"):
        return "store-flag"
    return name


def test_the_decoder_agrees_with_capstone(library: Any, disassembler: Any) -> None:
    seen = dict.fromkeys(OPERATIONS, 0)
    for code in candidates():
        mine = decode(library, code)
        if mine is None:
            continue
        name = OPERATIONS[mine.operation]
        theirs = next(disassembler.disasm(code, 0x1000, 1), None)
        prefixes = code[: code.index(0x63)] if name == "load-signed" and 0x63 in code[:4] else b""
        if theirs is None and 0x67 in prefixes:  # capstone knows no MOVSXD with an address-size prefix
            without = prefixes.replace(b"\x67", b"") + code[len(prefixes) :]
            theirs = next(disassembler.disasm(without, 0x1000, 1), None)
            assert theirs is not None, code.hex()
            assert mine.length == theirs.size + len(code) - len(without)
            continue
        assert theirs is not None, f"{code.hex()} is no instruction"
        text = f"{code.hex()}: {theirs.mnemonic} {theirs.op_str}"
        seen[name] += 1
        assert mine.length == theirs.size, text
        assert name == expected_operation(theirs), text
        memory = memory_operand(theirs)
        assert memory is not None, text
        assert mine.size == memory.size, text
        if name in STRINGS.values():
            prefixes = code[: mine.length - 1]  # which capstone does not tell all of
            assert bool(mine.repeated) == (0xF2 in prefixes or 0xF3 in prefixes), text
            continue
        check_address(mine, theirs, memory.mem, text)
        check_other_operand(mine, theirs, name, text)
    assert all(count for name, count in seen.items() if name != "none"), seen


def check_address(mine: Instruction, theirs: Any, memory: Any, text: str) -> None:
    def register(number: int) -> str:
        name = theirs.reg_name(number) or ""
        if name.endswith("d") and name[1:-1].isdigit():
            return name[:-1]
        return f"r{name[1:]}" if name.startswith("e") else name

    if mine.rip_relative:
        assert register(memory.base) in ("rip", "rip"), text
    else:
        assert (GENERAL[mine.base] if mine.base != NO_REGISTER else "") == register(memory.base), text
    index = register(memory.index) if memory.index else ""
    assert (GENERAL[mine.index] if mine.index != NO_REGISTER else "") == ("" if index in ("riz", "") else index), text
    if mine.index != NO_REGISTER:
        assert 1 << mine.scale == memory.scale, text
    mask = (1 << 64) - 1
    if theirs.mnemonic == "movabs" and mine.address_size == 4:
        mask = 0xFFFF_FFFF
    assert mine.displacement == memory.disp & mask, text
    assert mine.address_size == theirs.addr_size, text
    segment = theirs.reg_name(memory.segment) if memory.segment else "ds"
    if segment in ("fs", "gs"):
        assert SEGMENTS[mine.segment] == segment, text


def check_other_operand(mine: Instruction, theirs: Any, name: str, text: str) -> None:
    other = [o for o in theirs.operands if o.type != x86.X86_OP_MEM]
    if name in ("inc", "dec", "not", "neg", "store-flag"):
        assert not other, text
        return
    assert len(other) == 1, text
    if other[0].type == x86.X86_OP_IMM:
        assert mine.direction == 1 or name == "store-immediate", text
        bits = 8 * mine.size
        assert (mine.immediate ^ other[0].imm) & (1 << bits) - 1 == 0 or name.startswith("bt"), text
        return
    register = theirs.reg_name(other[0].reg)
    assert mine.width == other[0].size or name.endswith("vector"), text
    assert register_number(register) == (mine.reg + (4 if mine.high else 0), bool(mine.high)), text
    if mine.operation not in (OPERATIONS.index(n) for n in ("load", "load-signed", "store", "load-vector")):
        to_register = theirs.operands[0].type == x86.X86_OP_REG
        # TEST and XCHG are the same in either direction, and have only one encoding
        assert (mine.direction == 2) == (to_register and name not in ("test", "xchg")), text


def register_number(name: str) -> tuple[int, bool]:
    """Encoding of a register by capstone's name, and whether it is a high byte."""
    if name.startswith("xmm"):
        return int(name[3:]), False
    if name in ("ah", "ch", "dh", "bh"):
        return 4 + ("ah", "ch", "dh", "bh").index(name), True
    if name[0] == "r" and name.strip("rbdw").isdigit():
        return int(name.strip("rbdw")), False
    short = ("ax", "cx", "dx", "bx", "sp", "bp", "si", "di")
    bytes_ = ("al", "cl", "dl", "bl", "spl", "bpl", "sil", "dil")
    return (bytes_.index(name) if name in bytes_ else short.index(name[-2:])), False


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("c5fc1107", "AVX"), ("0f20c0", "no memory"), ("89c8", "a register"), ("f0488907", "LOCK of a store"),
        ("8f07", "POP"), ("ff37", "PUSH"), ("0fa307", "a bit string of any length"), ("66670f0b", "undefined"),
        ("f00f0b", "undefined"), ("d907", "x87"), ("0f0107", "SGDT"), ("0fc70f", "CMPXCHG16B"), ("", "nothing"),
    ],
)  # fmt: skip
def test_what_is_refused(library: Any, code: str, why: str) -> None:
    padded = bytes.fromhex(code) + b"\x90" * 15
    assert decode(library, padded[:15]) is None or not code, why


def test_every_prefix_of_an_instruction_wants_more(library: Any) -> None:
    code = bytes.fromhex("6766f3") + bytes.fromhex("44c784d811223344") + bytes.fromhex("5566")
    instruction = Instruction()
    for size in range(len(code)):
        assert library.rift_hvf_x86_instruction(code[:size], size, instruction) == 1, size
    assert library.rift_hvf_x86_instruction(code, len(code), instruction) == 0
    assert instruction.length == len(code)


def test_no_bytes_are_read_behind_fifteen(library: Any) -> None:
    instruction = Instruction()
    assert library.rift_hvf_x86_instruction(b"\x66" * 40, 40, instruction) == -1
    rng = random.Random(7)
    for _ in range(20_000):
        size = rng.randrange(16)
        status = library.rift_hvf_x86_instruction(rng.randbytes(size), size, instruction)
        assert status != 0 or instruction.length <= size


ARITHMETIC = (
    "add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "inc", "dec", "not", "neg", "xadd", "cmpxchg",
    "bt", "bts", "btr", "btc",
)  # fmt: skip
UNDEFINED = {"and": 0x10, "or": 0x10, "xor": 0x10, "test": 0x10} | dict.fromkeys(("bt", "bts", "btr", "btc"), 0x8D4)
"""Flags that the manual leaves undefined."""


@pytest.mark.parametrize("size", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_is_the_cpus(library: Any, name: str, size: int) -> None:
    rng = random.Random(size)
    edges = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0x7FFF_FFFF, 0x8000_0000, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]
    pairs = [*itertools.product(edges, edges), *((rng.getrandbits(64), rng.getrandbits(64)) for _ in range(200))]
    if name.startswith("bt"):
        if size == 1:
            return  # there is none
        pairs = [(left, right % (8 * size)) for left, right in pairs]
    operation, mask = OPERATIONS.index(name), (1 << 8 * size) - 1
    for (left, right), before in itertools.product(pairs, (0, 0x8D5)):
        mine, theirs = ctypes.c_uint64(before), ctypes.c_uint64(before)
        result = library.rift_hvf_x86_arithmetic(operation, size, left, right, ctypes.addressof(mine))
        expected = library.arithmetic_of_the_cpu(operation, size, left, right, ctypes.addressof(theirs))
        defined = 0x8D5 & ~UNDEFINED.get(name, 0)
        what = f"{name} {left:#x}, {right:#x} ({size} bytes)"
        assert result & mask == expected & mask, what
        assert mine.value & defined == theirs.value & defined, what


def test_conditions(library: Any) -> None:
    """All 16 conditions, in all states of the flags they look at: SDM volume 1, appendix B."""
    for flags in itertools.product((0, 1), repeat=5):
        carry, parity, zero, sign, overflow = flags
        word = carry | parity << 2 | zero << 6 | sign << 7 | overflow << 11
        holds = (
            overflow, carry, zero, carry | zero, sign, parity, sign ^ overflow, zero | (sign ^ overflow)
        )  # fmt: skip
        for condition in range(16):
            expected = bool(holds[condition // 2]) != bool(condition % 2)
            assert bool(library.rift_hvf_x86_condition(condition, ctypes.c_uint64(word))) == expected
