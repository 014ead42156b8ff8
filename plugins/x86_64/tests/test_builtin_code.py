"""The built-in code, against an assembler."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest
from elftools.elf.elffile import ELFFile

from rift_core import doorbell
from rift_core.testing.tools import require_tool, skip_here
from rift_x86_64 import builtin_code

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("address", [doorbell.DEFAULT_ADDRESS, 0xFFFF_8000_1234_5000])
def test_bytes_are_what_the_assembler_makes(tmp_path: Path, address: int) -> None:
    compiler = require_tool("gcc", package="gcc")
    source = tmp_path / "code.s"
    source.write_text(
        builtin_code.SOURCE.format(
            doorbell=hex(address), fault=doorbell.FAULT, return_=doorbell.RETURN, user_call=doorbell.USER_CALL
        )
    )
    result = subprocess.run(
        [compiler, "-c", "-m64", str(source), "-o", str(tmp_path / "code.o")],
        capture_output=True,
        text=True,
        check=False,
    )
    if "not recognized" in result.stderr or "no such instruction" in result.stderr:
        skip_here("this gcc assembles for another machine")
    assert result.returncode == 0, result.stderr
    with (tmp_path / "code.o").open("rb") as file:
        section = ELFFile(file).get_section_by_name(".text")
        assert section is not None
        text = section.data()
    assert text[: builtin_code.CODE_SIZE] == builtin_code.supervisor_code(address)
    assert text[builtin_code.CODE_SIZE :] == builtin_code.USER_CODE


def test_stubs_fit_and_reach_the_common_part() -> None:
    code = builtin_code.supervisor_code(doorbell.DEFAULT_ADDRESS)
    assert len(code) == builtin_code.CODE_SIZE
    for vector in range(256):
        stub = code[16 * vector : 16 * vector + 16]
        at = 0
        if vector not in builtin_code.ERROR_CODE_VECTORS:
            assert stub[:2] == b"\x6a\x00"
            at = 2
        assert stub[at] == 0x68
        assert int.from_bytes(stub[at + 1 : at + 5], "little") == vector
        assert stub[at + 5] == 0xE9
        distance = int.from_bytes(stub[at + 6 : at + 10], "little", signed=True)
        assert 16 * vector + at + 10 + distance == builtin_code.FAULT_OFFSET
    assert code[builtin_code.RESUME_OFFSET :][:6] == bytes.fromhex("4883c41048cf")
