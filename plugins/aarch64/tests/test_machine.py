"""AArch64 guests on whatever backend runs them here: compiled code, its runtime, both granules, both halves."""

from __future__ import annotations

import ctypes
import threading
from typing import TYPE_CHECKING, Any

import pytest

from rift_core import GuestFaultError, load_config, open_machine
from rift_core.build import build
from rift_core.errors import ConfigError
from rift_core.testing.tools import require_isa, require_payload_compiler, skip_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from rift_core.machine import Machine

SOURCE = r"""
#include <rift_guest.h>

volatile uint64_t counter, seen_pc, seen_level;
char page[3 * 0x4000] __attribute__((aligned(0x4000)));

int rift_exception(uint64_t vector, uint64_t error, struct rift_frame *frame, uintptr_t fault_address) {
    (void)fault_address;
    if (rift_cause(vector, error) != RIFT_CAUSE_UNDEFINED_INSTRUCTION)
        return 0;
    ++counter;
    seen_pc = *rift_frame_pc(frame);
    seen_level = rift_privilege_level();
    *rift_frame_pc(frame) += RIFT_UNDEFINED_BYTES;
    return 1;
}

long many(int a, long b, unsigned char c, long d, long e, long f, long g, long h, int i, long j) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j;
}

#ifdef RIFT_SIMD
double mixed(int a, double b, float c, long d, double e, double f, double g, double h, double i, double j, double k) {
    return a + 2 * b + 4 * c + 8 * d + e + f + g + h + i + j + k;
}
float half(float x) { return x / 2; }

/* Vector registers survive an exception whose handler uses them too. */
int vectors_survive(void) {
    uint64_t before[4] = {1, 2, 3, 4}, after[4] = {0};
    __asm__ volatile("ldp q8, q31, [%0]\n\t.inst 0\n\tstp q8, q31, [%1]" ::"r"(before), "r"(after)
                     : "v8", "v31", "memory");
    for (int i = 0; i < 4; ++i)
        if (after[i] != before[i])
            return 0;
    return 1;
}
#endif

/* Every general register survives an exception. Returns the number of the first one that does not, or 0. */
int registers_survive(void);
__asm__(".text\n"
        ".globl registers_survive\n"
        "registers_survive:\n"
        "    stp x29, x30, [sp, #-96]!\n"
        "    stp x19, x20, [sp, #16]\n"
        "    stp x21, x22, [sp, #32]\n"
        "    stp x23, x24, [sp, #48]\n"
        "    stp x25, x26, [sp, #64]\n"
        "    stp x27, x28, [sp, #80]\n"
        "    .irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
        "    mov x\\n, #(\\n * 0x101)\n"
        "    .endr\n"
        "    cmp xzr, xzr\n"
        "    .inst 0\n"
        "    mov x0, #99\n"
        "    b.ne 1f\n"
        "    .irp n, 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
        "    mov x0, #(\\n * 0x101)\n"
        "    cmp x0, x\\n\n"
        "    mov x0, #\\n\n"
        "    b.ne 1f\n"
        "    .endr\n"
        "    mov x0, #0\n"
        "1:  ldp x19, x20, [sp, #16]\n"
        "    ldp x21, x22, [sp, #32]\n"
        "    ldp x23, x24, [sp, #48]\n"
        "    ldp x25, x26, [sp, #64]\n"
        "    ldp x27, x28, [sp, #80]\n"
        "    ldp x29, x30, [sp], #96\n"
        "    ret\n");

__attribute__((noinline)) int overflow(int depth) {
    volatile char room[1024];
    room[0] = (char)depth;
    return depth < 1 << 30 ? overflow(depth + 1) + room[0] : 0;
}
void crooked_stack(void) { __asm__ volatile("mov x9, sp\n\tadd sp, x9, #4\n\tldr x9, [sp]" ::: "x9", "memory"); }
void crooked_pc(void) { ((void (*)(void))((uintptr_t)crooked_stack + 2))(); }
void trap(void) { __builtin_trap(); }
void supervisor_call(void) { __asm__ volatile("svc #7"); }
void wrong_return(void) {
    __asm__ volatile("msr spsr_el1, %0\n\tmsr elr_el1, x30\n\teret" ::"r"(0xdul)); /* EL3 */
}

/* The guest's own walk of an address: guest-physical, or the status with bit 63. */
uint64_t walk(uintptr_t address) {
    struct rift_walk result;
    const int status = rift_walk(address, &result);
    return status ? (uint64_t)status | 1ull << 63 : result.physical;
}
int walk_permissions(uintptr_t address) {
    struct rift_walk result;
    return rift_walk(address, &result) ? -1 : result.permissions;
}
uint64_t walk_size(uintptr_t address) {
    struct rift_walk result;
    return rift_walk(address, &result) ? 0 : result.page_size;
}

/* A page of the guest's own at a place without tables: used, replaced by another one, removed. */
int map_own_page(uintptr_t address) {
    const uint64_t first = rift_spare_page(), second = rift_spare_page();
    volatile uint64_t *word = (volatile uint64_t *)address;
    if (!first || !second || rift_map_page(address, first, RIFT_READ | RIFT_WRITE))
        return 1;
    *word = 1;
    if (rift_map_page(address, second, RIFT_READ | RIFT_WRITE) || *word != 0)
        return 2;
    *word = 2;
    if (rift_map_page(address, first, RIFT_READ) || *word != 1)
        return 3;
    if (walk(address) != first || walk_permissions(address) != RIFT_READ)
        return 4;
    return rift_unmap_page(address) || walk(address) != (RIFT_WALK_NOT_PRESENT | 1ull << 63) ? 5 : 0;
}

uint64_t load(uintptr_t address) { return *(volatile uint64_t *)address; }
void store(uintptr_t address, uint64_t value) { *(volatile uint64_t *)address = value; }

/* Touches the pages in turn until the host says stop. */
volatile uint32_t stop;
uint64_t touch(uintptr_t address, uint64_t step, uint64_t pages) {
    uint64_t rounds = 0;
    for (; !stop; ++rounds)
        for (uint64_t page = 0; page < pages; ++page)
            ++*(volatile uint64_t *)(address + page * step);
    return rounds;
}

int level(void) { return (int)rift_privilege_level(); }
int undefined(void) {
    rift_undefined_instruction();
    return (int)counter;
}
int64_t ask(uint64_t number) { return rift_user_call(number, 1, 2, 3, 4, 5, 6); }
int main(void) { return 5; }
"""


@pytest.fixture(scope="module")
def payloads(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``payloads(simd=True)`` and so on, each built once."""
    folder = tmp_path_factory.mktemp("payloads")
    (folder / "guest.c").write_text(SOURCE)
    built: dict[str, Path] = {}

    def payload(**options: Any) -> Path:
        key = repr(sorted(options.items()))
        if key not in built:
            require_payload_compiler("aarch64", options.get("compiler"))
            built[key] = build(folder / "guest.c", folder / f"guest{len(built)}", "aarch64", **options).path
        return built[key]

    return payload


@pytest.fixture
def start(payloads: Callable[..., Path]) -> Iterator[Callable[..., Machine]]:
    """``start(isa settings, thread=..., **build options)``: a machine."""
    require_isa("aarch64")
    machines = []

    def call(isa: dict[str, Any] | None = None, thread: dict[str, Any] | None = None, **options: Any) -> Machine:
        config = {
            "binary": {"path": str(payloads(**options))},
            "isa": {"name": "aarch64", **(isa or {})},
            "threads": [{"name": "main", "entry": "main", **(thread or {})}],
            "limits": {"wall_time": 60},
        }
        machine = open_machine(load_config(config))
        machines.append(machine)
        return machine

    yield call
    for machine in machines:
        machine.close()


def number(machine: Machine, name: str) -> int:
    return int.from_bytes(machine.symbol(name).view(), "little")


def test_arguments_and_results(start: Any) -> None:
    machine = start()
    numbers = (-1, 2, 255, 4, 5, 6, 7, 8, -9, 10)
    expected = sum((at + 1) * value for at, value in enumerate(numbers))
    assert machine.call("many", *numbers, restype=ctypes.c_long) == expected
    assert machine.thread("main").start().join(timeout=30).status == 5


def test_floating_point_arguments_and_results(start: Any) -> None:
    machine = start(simd=True)
    values = (1, 2.5, ctypes.c_float(0.5), -4, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.25)
    assert machine.call("mixed", *values, restype=ctypes.c_double) == 1 + 5 + 2 - 32 + 28.25
    assert machine.call("half", ctypes.c_float(3.0), restype=ctypes.c_float) == 1.5


@pytest.mark.parametrize("simd", [False, True])
def test_registers_survive_a_handled_exception(start: Any, simd: bool) -> None:
    machine = start(simd=simd)
    assert machine.call("registers_survive") == 0
    assert number(machine, "counter") == 1
    assert number(machine, "seen_level") == 0, "the handler runs in EL1"
    if simd:
        assert machine.call("vectors_survive") == 1


def report(machine: Machine, function: str, *arguments: int, **options: Any) -> Any:
    with pytest.raises(GuestFaultError) as caught:
        machine.call(function, *arguments, **options)
    return caught.value.report


@pytest.mark.parametrize("vectors", ["auto", "built-in"])
def test_a_lost_stack_is_reported_with_its_registers(start: Any, vectors: str) -> None:
    machine = start(thread={"vectors": vectors})
    found = report(machine, "overflow", 0)
    assert "overflow" in found.location
    assert "stack overflow" in found.fault.words
    assert found.fault.name == "data abort"
    assert found.fault.registers["x29"] != 0
    assert any("overflow" in line for line in found.backtrace)
    assert machine.call("level") == 0, "the machine goes on"


def test_faults_in_words(start: Any) -> None:
    machine = start()
    crooked = report(machine, "crooked_stack").fault
    assert crooked.name in ("SP alignment fault", "data abort"), crooked
    found = report(machine, "trap")
    assert "compiler's trap" in found.fault.words
    assert "trap" in found.location
    assert "SVC #0x7 in supervisor mode" in report(machine, "supervisor_call").fault.words
    assert "a null pointer" in report(machine, "load", 8).fault.words
    assert "neither half" in report(machine, "load", 0x1234 << 48).fault.words
    assert "by the page's permissions" in report(machine, "store", machine.symbol("main").address, 1).fault.words


@pytest.mark.parametrize("granule", ["4KiB", "16KiB"])
@pytest.mark.parametrize("contiguous", [False, True])
def test_granules(start: Any, granule: str, contiguous: bool) -> None:
    try:
        machine = start({"granule": granule, "contiguous": contiguous})
    except ConfigError as error:
        skip_here(str(error))
    page = {"4KiB": 0x1000, "16KiB": 0x4000}[granule]
    large = {"4KiB": 0x20_0000, "16KiB": 0x200_0000}[granule]
    assert machine.isa.page_sizes[0] == page
    assert machine.call("registers_survive") == 0

    def guest(function: str, *arguments: int) -> int:
        return int(machine.call(function, *arguments, restype=ctypes.c_uint64))

    at = 0x5000_0000_0000
    machine.map(at, 2 * large + 16 * page, "rw")
    for place in (
        machine.symbol("main").address,
        machine.symbol("counter").address,
        at,
        at + 2 * large - 8,
        at + 2 * large,
    ):
        assert guest("walk", place) == machine.translate(place).physical
        assert guest("walk_size", place) == machine.translate(place).page_size
    guest("store", at + large, 7)
    machine.protect(at + large, page, "r")
    assert guest("walk_permissions", at + large) == 1
    assert guest("load", at + large) == 7
    assert "permissions" in report(machine, "store", at + large, 8).fault.words
    guest("store", at + large + page, 9)
    machine.unmap(at + large, page)
    assert guest("walk", at + large) >> 63
    assert "found no page mapped" in report(machine, "load", at + large).fault.words
    assert guest("load", at + large + page) == 9
    assert guest("map_own_page", 0x4000_0000_0000) == 0
    machine.map(0xFFFF_8000_0000_0000, page, "rw")
    guest("store", 0xFFFF_8000_0000_0000, 5)
    assert guest("walk", 0xFFFF_8000_0000_0000) == machine.translate(0xFFFF_8000_0000_0000).physical


def test_an_image_in_the_upper_half(start: Any) -> None:
    machine = start(base=0xFFFF_0000_0020_0000)
    assert machine.symbol("main").address >> 48 == 0xFFFF
    assert machine.call("registers_survive") == 0
    assert machine.thread("main").start().join(timeout=30).status == 5


def test_accessed_and_dirty(start: Any) -> None:
    machine = start({"largest_page": "4KiB"})
    isa = machine.isa
    at, page = machine.symbol("page").address, isa.page_sizes[0]
    machine.accessed_dirty(at, 3 * page, clear=True)
    machine.call("load", at)
    machine.call("store", at + page, 1)
    marks = [row[2:] for row in machine.accessed_dirty(at, 3 * page)]
    expected = [(True, False), (True, True), (False, False)]
    assert marks == [(a or not isa.keeps_accessed, d or not isa.keeps_dirty) for a, d in expected]


def test_large_pages_are_cut_under_a_running_guest(start: Any) -> None:
    """Nothing is lost, and no TLB is in doubt, while the host takes pages out of a block that the guest is using."""
    machine = start()
    at, large, page = 0x5000_0000_0000, 0x20_0000, 0x1000
    machine.map(at, large, "rw")
    assert machine.translate(at).page_size == large
    results: list[int] = []
    guest = threading.Thread(
        target=lambda: results.append(machine.call("touch", at, page, 8, restype=ctypes.c_uint64, timeout=50))
    )
    guest.start()
    for turn in range(8):
        machine.protect(at + (100 + turn) * page, page, "r")
        machine.unmap(at + (300 + turn) * page, page)
    machine.symbol("stop").view()[0] = 1
    guest.join(60)
    assert len(results) == 1, "the guest faulted"
    counts = [int.from_bytes(machine.read_virtual(at + n * page, 8), "little") for n in range(8)]
    assert counts == [results[0]] * 8


def test_user_mode_under_the_payloads_own_vectors(start: Any) -> None:
    machine = start(thread={"vectors": "rift_vectors", "privilege": "user"})
    assert machine.thread("main").start().join(timeout=30).status == 5
    assert machine.call("level") != 0
    assert machine.call("ask", 0x1234, restype=ctypes.c_int64) == -38


def test_an_undefined_instruction_of_user_mode_reaches_the_payloads_handler(start: Any) -> None:
    machine = start(thread={"entry": "undefined", "vectors": "rift_vectors", "privilege": "user"})
    assert machine.thread("main").start().join(timeout=30).status == 1
    assert number(machine, "seen_level") == 0, "the handler runs in EL1, and knows it"
