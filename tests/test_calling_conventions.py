"""Arguments reach functions that clang has compiled, by the convention of the payload's format and ISA."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import pytest

from rift_core import build_macho, open_machine
from rift_core.build import build
from rift_core.build_target import BuildError, Target, isa_sources
from rift_core.testing.tools import require_backend, require_tool, session

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rift_core import Machine

# Each result depends on every argument, on its place and on its sign.
SOURCE = """
typedef signed char i8; typedef unsigned char u8; typedef short i16; typedef long long i64;

i64 many(i64 a, i64 b, i64 c, i64 d, i64 e, i64 f, i64 g, i64 h,
         i8 i, i16 j, u8 k, int l, i64 m, i8 n, int o, i16 p) {
    i64 all[16] = {a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p};
    unsigned long long sum = 0;
    for (int at = 0; at < 16; ++at)
        sum = 31 * sum + (unsigned long long)all[at];
    return (i64)sum;
}

i64 narrow(i8 a, u8 b, i16 c, int d, _Bool e) { return ((((i64)a * 7 + b) * 7 + c) * 7 + d) * 7 + e; }

double mixed(double a, double b, double c, double d, double e, double f, double g, double h, float i, double j,
             float k, float l, i64 x) {
    return a + 2 * b + 3 * c + 4 * d + 5 * e + 6 * f + 7 * g + 8 * h + 9 * i + 10 * j + 11 * k + 12 * l + 13 * x;
}

i8 wraps(int value) { return (i8)value; }
int main(void) { return 0; }
"""

TYPES = (ctypes.c_int64,) * 8 + (
    ctypes.c_int8, ctypes.c_int16, ctypes.c_uint8, ctypes.c_int32, ctypes.c_int64, ctypes.c_int8, ctypes.c_int32,
    ctypes.c_int16,
)  # fmt: skip


@pytest.fixture(params=[("aarch64", "macho"), ("aarch64", "elf"), ("x86_64", "macho"), ("x86_64", "elf")], ids="-".join)
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    isa, format = request.param
    require_tool("clang")
    require_backend("emulator")
    try:
        build_macho.find_compiler(Target.read(isa, isa_sources(isa)), "clang")
    except BuildError as error:
        session().skip(str(error))
    source = tmp_path / "guest.c"
    source.write_text(SOURCE)
    result = build(source, tmp_path / "guest", isa, format=format, compiler="clang", simd=True)
    configuration = {"binary": {"path": str(result.path)}, "backend": {"name": "emulator"}, "isa": {"name": isa}}
    with open_machine(configuration) as made:
        yield made


def test_sixteen_integers_of_all_sizes(machine: Machine) -> None:
    values = [*range(-3, 5), -1, -300, 200, -70_000, 1 << 40, -128, 1 << 30, 32_000]
    expected = 0
    for value in values:
        expected = 31 * expected + value
    arguments = [kind(value) for kind, value in zip(TYPES, values, strict=True)]
    result = machine.call("many", *arguments, restype=ctypes.c_int64)
    assert result == ctypes.c_int64(expected).value


def test_the_caller_extends(machine: Machine) -> None:
    values = (ctypes.c_int8(-5), ctypes.c_uint8(250), ctypes.c_int16(-3000), ctypes.c_int(-1 << 31), ctypes.c_bool(1))
    expected = (((-5 * 7 + 250) * 7 - 3000) * 7 - (1 << 31)) * 7 + 1
    assert machine.call("narrow", *values, restype=ctypes.c_int64) == expected
    assert machine.call("wraps", 0x180, restype=ctypes.c_int8) == -128


def test_floats_beyond_the_registers(machine: Machine) -> None:
    values = [float(number) for number in range(1, 9)]
    rest = (ctypes.c_float(1.5), 2.5, ctypes.c_float(3.5), ctypes.c_float(-4.5))
    weights = [*values, 1.5, 2.5, 3.5, -4.5, 7]
    expected = sum((at + 1) * value for at, value in enumerate(weights))
    assert machine.call("mixed", *values, *rest, 7, restype=ctypes.c_double) == expected
