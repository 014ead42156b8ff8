"""The built-in code, against an assembler and against a disassembler."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from elftools.elf.elffile import ELFFile

from rift_aarch64 import builtin_code
from rift_core import doorbell
from rift_core.testing.tools import require_module, require_payload_compiler

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 0x1000
ADDRESSES = [doorbell.DEFAULT_ADDRESS, 0x0123_4567_8000]


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("compiler", ["gcc", "clang", "zig"])
def test_bytes_are_what_the_assembler_makes(tmp_path: Path, compiler: str, address: int) -> None:
    found = require_payload_compiler("aarch64", compiler)
    source = tmp_path / "code.s"
    source.write_text(
        builtin_code.SOURCE.format(
            doorbell=hex(address), fault=doorbell.FAULT, return_=doorbell.RETURN, user_call=doorbell.USER_CALL
        )
    )
    subprocess.run([*found.command, "-c", str(source), "-o", str(tmp_path / "code.o")], check=True, capture_output=True)
    with (tmp_path / "code.o").open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        assert section is not None
        text = section.data()
    ours = builtin_code.supervisor_code(address, SIZE)
    supervisor = text[: -len(builtin_code.USER_CODE)]
    assert supervisor == ours[: len(supervisor)]
    assert text[len(supervisor) :] == builtin_code.USER_CODE
    filling = ours[len(supervisor) :]
    assert filling == bytes.fromhex("000020d4") * (len(filling) // 4)  # brk #0


def disassembled(code: bytes) -> list[str]:
    capstone: Any = require_module("capstone")
    decoder = capstone.Cs(capstone.CS_ARCH_ARM64, capstone.CS_MODE_ARM)
    return [f"{i.mnemonic} {i.op_str}".strip() for i in decoder.disasm(code, 0)]


@pytest.mark.parametrize("vector", range(16))
def test_a_vector_changes_no_register(vector: int) -> None:
    code = builtin_code.supervisor_code(doorbell.DEFAULT_ADDRESS, SIZE)
    lines = disassembled(code[vector * 128 : vector * 128 + 128])
    lines = lines[: lines.index("eret") + 1]
    assert lines[0] == "msr tpidr_el1, x30"
    assert lines[-2:] == ["mrs x30, tpidr_el1", "eret"]
    assert "str wzr, [x30, #0x808]" in lines
    assert ("str x8, [x30, #0x810]" in lines) == (vector == builtin_code.SYNCHRONOUS_FROM_EL0)
    for line in lines[1:-2]:
        assert line.split()[0] in ("b", "b.eq", "cmp", "str") or line.split()[1] == "x30,", line
        assert "sp" not in line
