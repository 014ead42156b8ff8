"""The interpreter of the fake backend against the CPU of this machine: compiled C gives the same on both."""

from __future__ import annotations

import ctypes
import platform
import subprocess
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rift_core.exits import ExitKind
from rift_core.memory import Gva, Permission
from rift_core.testing import fakes
from rift_core.testing.bench import CODE, DATA, EXTRA, Bench
from rift_core.testing.guests import DONE
from rift_core.testing.guests_x86_64 import X86_64Guests
from rift_core.testing.tools import require_tool, skip_here

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOURCE = r"""
#define F __attribute__((section(".text.entry"), used, noinline))
typedef unsigned long u64; typedef long i64; typedef unsigned u32; typedef int i32;
typedef unsigned short u16; typedef unsigned char u8; typedef signed char i8; typedef short i16;

static u64 arithmetic(u64 a, u64 b) { return a * 3 + b - (a ^ b) + (a & ~b) + (i64)((i32)a * (i32)b) + -(i64)b; }
static u64 division(u64 a, u64 b) {
    u64 d = b | 1; i64 e = (i64)(b | 1) == -1 ? 7 : (i64)(b | 1); u32 f = (u32)b | 1;
    i32 h = (i32)f == -1 ? 3 : (i32)f;
    return a / d + a % d + (u64)((i64)a / e) + (u64)((i64)a % e) + (u32)a / f + (u64)(i64)((i32)a % h)
        + (u8)a / ((u8)b | 1) + (u16)a % ((u16)b | 1);
}
static u64 shifts(u64 a, u64 b) {
    return (a << (b & 63)) + (a >> (b & 63)) + (u64)((i64)a >> (b & 63)) + ((u32)a << (b & 31))
        + (u32)((i32)a >> (b & 31)) + (u64)(a << 13 | a >> 51) + ((u32)a >> 7 | (u32)a << 25) + (u16)((u16)a >> 3);
}
static u64 compare(u64 a, u64 b) {
    return (a < b) | ((i64)a < (i64)b) << 1 | (a == b) << 2 | ((u32)a > (u32)b) << 3 | ((i8)a <= (i8)b) << 4
        | ((i16)a >= (i16)b) << 5 | ((u8)a != (u8)b) << 6 | (u64)((i32)a < 0 ? 3 : 5) << 8 | (u64)(!a) << 12;
}
static u64 wide(u64 a, u64 b) {
    unsigned __int128 p = (unsigned __int128)a * b; __int128 q = (__int128)(i64)a * (i64)b;
    unsigned __int128 s = ((unsigned __int128)a << 64 | b) + ((unsigned __int128)b << 64 | a);
    return (u64)p ^ (u64)(p >> 64) ^ (u64)(q >> 64) ^ (u64)(s >> 64) ^ (u64)((q - s) >> 64);
}
static u64 bits(u64 a, u64 b) {
    u64 n = 0;
    for (u64 x = a; x; x &= x - 1) n++;
    if (a) n += __builtin_ctzl(a) * 64 + __builtin_clzl(a);
    if (b >> (a & 63) & 1) n += 1000;
    a |= 1ul << (b & 63); a &= ~(1ul << (b >> 8 & 63)); a ^= 1ul << (b >> 16 & 63);
    return n + __builtin_bswap64(a) + __builtin_bswap32((u32)b) + __builtin_bswap16((u16)a);
}
static u64 bytes(u64 a, u64 b) {
    u8 buffer[64]; u32 table[16]; u64 sum = 0;
    for (int i = 0; i < 64; i++) buffer[i] = (u8)(a >> (i & 7) * 8) + i;
    for (int i = 0; i < 16; i++) table[i] = (u32)(b >> i) ^ buffer[i * 3];
    for (int i = 1; i < 16; i++)
        for (int j = i; j > 0 && table[j - 1] > table[j]; j--) {
            u32 t = table[j]; table[j] = table[j - 1]; table[j - 1] = t;
        }
    for (int i = 0; i < 16; i++) sum = sum * 31 + table[i];
    for (int i = 0; i < 64; i++) sum += (i8)buffer[i] * i;
    return sum;
}
static u64 strings(u64 a, u64 b) {
    u8 from[40], to[40]; u64 sum = 0;
    u8 *p = from, *q = to; u64 n = 40; u64 byte = a;
    __asm__ volatile("cld; rep stosb" : "+D"(p), "+c"(n) : "a"(byte) : "memory");
    from[b % 40] = (u8)(a + 1);
    p = from; n = 5;
    __asm__ volatile("rep movsq" : "+S"(p), "+D"(q), "+c"(n) : : "memory");
    p = to; n = 40;
    __asm__ volatile("repe scasb" : "+D"(p), "+c"(n) : "a"(byte) : "memory", "cc");
    sum = n;
    p = from; q = to; n = 40; to[a % 40] ^= 0x20;
    __asm__ volatile("repe cmpsb" : "+S"(p), "+D"(q), "+c"(n) : : "memory", "cc");
    return sum * 64 + n;
}
static u64 atomics(u64 a, u64 b) {
    u64 x = a; u32 y = (u32)b; u64 e = b;
    u64 r = __atomic_fetch_add(&x, b, 5) + __atomic_exchange_n(&y, (u32)a, 5);
    r += __atomic_compare_exchange_n(&x, &e, a, 0, 5, 5) + __atomic_sub_fetch(&y, 3, 5) + __atomic_or_fetch(&x, 5, 5);
    return r ^ x ^ y ^ e;
}
static u64 flags(u64 a, u64 b) {
    u64 f, g, h, i;
    __asm__ volatile("add %3, %2; pushfq; pop %0; sub %3, %2; pushfq; pop %1"
        : "=&r"(f), "=&r"(g), "+r"(a) : "r"(b) : "cc");
    __asm__ volatile("adcb %b3, %b2; pushfq; pop %0; sbbw %w3, %w2; pushfq; pop %1"
        : "=&r"(h), "=&r"(i), "+r"(a) : "r"(b) : "cc");
    u64 k, l;
    __asm__ volatile("negl %k2; pushfq; pop %0; incb %b2; pushfq; pop %1" : "=&r"(k), "=&r"(l), "+r"(a) : : "cc");
    return ((f & 0x8d5) | (g & 0x8d5) << 12 | (h & 0x8d5) << 24 | (i & 0x8d5) << 36)
        ^ ((k & 0x8d5) << 48) ^ (l & 0x8d5) ^ a;
}
static u64 recurse(u64 a, u64 b) { return a < 2 ? b : recurse(a - 1, b * 5 + a) + recurse(a - 2, b ^ a); }
static u64 calls(u64 a, u64 b) { return recurse(a % 9, b); }
static u64 choose(u64 a, u64 b) {
    switch (a % 9) {
    case 0: return b + 1; case 1: return b * 3; case 2: return ~b; case 3: return b << 3; case 4: return b >> 5;
    case 5: return -b; case 6: return b / 7; case 7: return b % 11; default: return 0;
    }
}
F u64 entry(u64 which, u64 a, u64 b) {
    switch (which) {
    case 0: return arithmetic(a, b); case 1: return division(a, b); case 2: return shifts(a, b);
    case 3: return compare(a, b); case 4: return wide(a, b); case 5: return bits(a, b); case 6: return bytes(a, b);
    case 7: return strings(a, b); case 8: return atomics(a, b); case 9: return flags(a, b); case 10: return calls(a, b);
    default: return choose(a, b);
    }
}
"""
NAMES = (
    "arithmetic", "division", "shifts", "compare", "wide", "bits", "bytes", "strings", "atomics", "flags", "calls",
    "choose",
)  # fmt: skip
SCRIPT = (
    "SECTIONS { . = 0x%x; .all : { *(.text.entry) *(.text*) *(.rodata*) *(.data*) *(.bss*) } /DISCARD/ : { *(*) } }"
)


class Twin:
    """The same C code in a machine of the fake backend and in this process."""

    def __init__(self, folder: Path, level: str) -> None:
        gcc, objcopy = require_tool("gcc"), require_tool("objcopy", package="binutils")
        source, script = folder / "twin.c", folder / "twin.ld"
        source.write_text(SOURCE)
        script.write_text(SCRIPT % CODE)
        common = [gcc, level, "-mgeneral-regs-only", "-fno-stack-protector", "-fcf-protection=none", "-w", str(source)]
        guest, library = folder / "guest.elf", folder / "twin.so"
        static = ["-ffreestanding", "-fno-pie", "-no-pie", "-nostdlib", "-static", "-mno-red-zone", f"-Wl,-T,{script}"]
        subprocess.run([*common, *static, "-Wl,--build-id=none", "-o", str(guest)], check=True)
        subprocess.run([*common, "-shared", "-fPIC", "-o", str(library)], check=True)
        subprocess.run([objcopy, "-O", "binary", str(guest), str(folder / "guest.bin")], check=True)
        self.native = ctypes.CDLL(str(library)).entry
        self.native.restype = ctypes.c_uint64
        self.native.argtypes = [ctypes.c_uint64] * 3
        self.bench = Bench(fakes, "x86_64", X86_64Guests())
        self.vcpu = self.bench.vcpu()
        self.bench.load((folder / "guest.bin").read_bytes(), CODE)
        self.bench.load(X86_64Guests().store_result(DATA) + X86_64Guests().end(), CODE + 0x1_0000)

    def run(self, which: int, a: int, b: int) -> int:
        """The result in the guest."""
        rsp = DATA + 0xFF00
        self.bench.put(rsp, CODE + 0x1_0000)
        self.vcpu.write_registers({"rip": CODE, "rsp": rsp, "rdi": which, "rsi": a, "rdx": b})
        exit = self.bench.run(self.vcpu)
        assert exit.address == DONE, self.bench.describe(self.vcpu, exit)
        return self.bench.number(DATA)


@pytest.fixture(scope="module", params=["-O1", "-O2", "-Os"])
def twin(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Twin]:
    if platform.machine() != "x86_64":
        skip_here("compares with the CPU of an x86-64 machine")
    made = Twin(tmp_path_factory.mktemp("twin"), request.param)
    yield made
    made.bench.close()


NUMBERS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.integers(-300, 300).map(lambda n: n & (1 << 64) - 1),
    st.integers(0, 63).map(lambda n: 1 << n),
)


@pytest.mark.parametrize("which", range(len(NAMES)), ids=NAMES)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(a=NUMBERS, b=NUMBERS)
def test_compiled_code_gives_the_same(twin: Twin, which: int, a: int, b: int) -> None:
    assert twin.run(which, a, b) == twin.native(which, a, b)


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench(fakes, "x86_64", X86_64Guests())
    yield made
    made.close()


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("f7f1", 0),  # div ecx by 0
        ("cc", 3),
        ("0f0b", 6),
        ("0f10c0", 6),  # movups xmm0, xmm0: no SSE here
        ("d9c0", 6),  # fld st0: no x87
        ("48b800000000000000ff 488b00", 13),  # mov rax, non-canonical; mov rax, [rax]
        ("31c0 0f22c0", 13),  # mov cr0, 0
        ("cd80", 13),  # a gate that is absent or for supervisor interrupts is the guest's own affair
        ("6666666666666666666666666666666690", 13),  # longer than 15 bytes
    ],
)
def test_exceptions(bench: Bench, code: str, vector: int) -> None:
    vcpu = bench.vcpu(bytes.fromhex(code))
    vcpu.write_registers({"rcx": 0})
    exit = bench.run(vcpu)
    fault = bench.isa.read_fault(vcpu, bench, exit)
    assert fault is not None
    if code != "cd80":
        assert fault.vector == vector


def test_any_bytes_are_harmless(bench: Bench) -> None:
    """Hostile code ends in an exit, or goes on: nothing is raised, nothing hangs."""
    vcpu = bench.vcpu()
    fresh = vcpu.save()

    @settings(max_examples=300, deadline=None)
    @given(code=st.binary(min_size=1, max_size=40), seed=st.integers(0, (1 << 64) - 1))
    def try_code(code: bytes, seed: int) -> None:
        vcpu.restore(fresh)
        vcpu.write_registers({"rax": seed, "rcx": seed & 0xFF, "rbx": DATA, "rsi": DATA, "rdi": DATA + 0x100})
        bench.load(code + X86_64Guests().end())
        vcpu.set_debug(single_step=True)
        for _ in range(30):
            if vcpu.run().kind in (ExitKind.SHUTDOWN, ExitKind.FAIL_ENTRY):
                break

    try_code()


def test_guest_at_the_end_of_memory(bench: Bench) -> None:
    """Instructions that are not in memory: the exit says where."""
    bench.space.protect(Gva(EXTRA), 0x1000, Permission.READ | Permission.EXECUTE)
    vcpu = bench.vcpu(X86_64Guests().jump(EXTRA))
    exit = bench.run(vcpu)
    assert (exit.kind, exit.address) == (ExitKind.FAIL_ENTRY, EXTRA)
