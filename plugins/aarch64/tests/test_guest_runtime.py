"""The guest runtime as far as it can be judged without a guest: it compiles cleanly, and its vectors are what the host
takes them for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from elftools.elf.elffile import ELFFile

from rift_core.build import build
from rift_core.build_target import isa_sources
from rift_core.testing.tools import require_module, require_payload_compiler

if TYPE_CHECKING:
    from pathlib import Path

SOURCE = """
#include <rift_guest.h>
RIFT_CHANNEL(log_channel, 4096);
static struct rift_mutex mutex;
static struct rift_barrier barrier = RIFT_BARRIER(1);
struct rift_walk walk;
#define AT(member) offsetof(struct rift_frame, member)
const unsigned offsets[] = {AT(x[30]), AT(sp), AT(pc), AT(pstate), AT(vector), AT(error), AT(fault_address),
                            AT(syndrome), AT(mode), AT(report), sizeof(struct rift_frame)};
int main(void) {
    char text[64];
    struct rift_system_value value;
    rift_set_exception_handler(NULL);
    rift_snprintf(text, sizeof text, "%d", 5);
    rift_puts(text), rift_putchar('!');
    rift_printf("%s %s", text, rift_privilege_name());
    rift_mutex_lock(&mutex), rift_mutex_unlock(&mutex), rift_mutex_try_lock(&mutex);
    rift_barrier_wait(&barrier);
    rift_channel_write(&log_channel.channel, text, 5), rift_channel_read(&log_channel.channel, text, 5);
    rift_doorbell_write(RIFT_DOORBELL_USER_FIRST, rift_doorbell_read(RIFT_DOORBELL_USER_FIRST));
    rift_map_page(0x300000, rift_spare_page(), RIFT_READ | RIFT_WRITE), rift_unmap_page(0x300000);
    rift_flush_tlb(0), rift_flush_tlb_all();
    rift_memory_barrier(), rift_read_barrier(), rift_write_barrier();
    rift_disable_interrupts(), rift_enable_interrupts();
    memmove(text, text + 1, 8);
    if (memcmp(text, text + 1, 8) || rift_walk(0, &walk) || rift_cause(6, 0) || rift_fault_access(0x25, 0))
        rift_exit(rift_divide(1, 1));
    if (rift_system_value(0, &value))
        rift_hypercall(RIFT_PSCI_SYSTEM_OFF, 0, 0, 0, 0, 0, 0);
    return (int)rift_user_call(RIFT_CALL_HANDLERS, 1, 2, 3, 4, 5, 6);
}
"""
FRAME = ("X30", "SP", "PC", "PSTATE", "VECTOR", "ERROR", "FAULT_ADDRESS", "SYNDROME", "MODE", "REPORT", "BYTES")


class Payload:
    """A payload that uses all of the runtime, and what it is made of."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            elf = ELFFile(file)
            table = elf.get_section_by_name(".symtab")
            self.symbols = {symbol.name: symbol["st_value"] for symbol in table.iter_symbols()}
            self.segments = [(segment["p_vaddr"], segment.data()) for segment in elf.iter_segments("PT_LOAD")]

    def read(self, address: int, size: int) -> bytes:
        start, data = next(s for s in self.segments if s[0] <= address < s[0] + len(s[1]))
        return data[address - start : address - start + size]

    def disassembled(self, address: int, size: int) -> list[str]:
        capstone: Any = require_module("capstone")
        decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
        return [f"{i.mnemonic} {i.op_str}".strip() for i in decoder.disasm(self.read(address, size), address)]


@pytest.fixture(scope="module", params=["gcc", "clang", "zig"])
def payload(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Payload:
    """Compiled without a warning."""
    folder = tmp_path_factory.mktemp(request.param)
    source = folder / "all.c"
    source.write_text(SOURCE)
    options = ["-Wall", "-Wextra", "-Wconversion", "-Werror"]
    require_payload_compiler("aarch64", request.param)
    return Payload(build(source, folder / "all", "aarch64", compiler=request.param, options=options).path)


def test_the_frame_of_the_vectors_is_the_one_of_the_header(payload: Payload) -> None:
    text = (isa_sources("aarch64") / "vectors.S").read_text()
    defined = dict(re.findall(r"#define FRAME_(\w+) \((\d+) \* 8\)", text))
    data = payload.read(payload.symbols["offsets"], 4 * len(FRAME))
    offsets = [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
    assert [int(defined[name]) * 8 for name in FRAME] == offsets
    assert offsets[-1] % 16 == 0


@pytest.mark.parametrize("vector", range(16))
def test_a_vector_reports_without_a_stack(payload: Payload, vector: int) -> None:
    base = payload.symbols["rift_vectors"]
    assert base % 0x800 == 0
    lines = payload.disassembled(base + vector * 128, 128)
    assert lines[0] == "msr tpidr_el1, x30"
    report = lines.index("str wzr, [x30, #0x808]")
    assert lines[report - 2 : report + 3] == [
        "mov x30, #0",
        "movk x30, #0x7000, lsl #16",
        "str wzr, [x30, #0x808]",
        "mrs x30, tpidr_el1",
        "eret",
    ]
    check = lines[1 : next(at for at, line in enumerate(lines) if line.startswith("stp"))]
    assert "sub sp, sp, #0x140" in check
    guarded = check[: check.index("sub sp, sp, #0x140")]
    assert any(line.startswith("tbnz") for line in guarded), "the stack is looked at before anything is stored there"
    for line in guarded:
        assert "[" not in line, line


def test_the_vectors_save_what_the_compiler_may_use(tmp_path: Path) -> None:
    source = tmp_path / "guest.c"
    source.write_text("#include <rift_guest.h>\nint main(void) { return 0; }\n")
    require_payload_compiler("aarch64")
    found = [Payload(build(source, tmp_path / "guest", "aarch64", simd=simd).path) for simd in (False, True)]
    for simd, payload in enumerate(found):
        start, end = payload.symbols["common_1"], payload.symbols["resume"]
        code = "\n".join(payload.disassembled(start, end - start))
        for number in range(0, 32, 2):
            assert (f"stp q{number}, q{number + 1}" in code) == bool(simd)
            assert (f"ldp q{number}, q{number + 1}" in code) == bool(simd)
