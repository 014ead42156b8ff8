"""Ordinary C by an optimizing compiler, vector registers included, gives in the guest what it gives on the host."""

from __future__ import annotations

import ctypes
import random
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from machine_code import ISA

from rift_core import Machine, load_config, open_machine
from rift_core.build import build
from rift_core.testing.tools import require_backend, require_capability, require_compiler, skip_here

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rift_core.backend import ProbeResult

SOURCE = Path(__file__).parent / "payloads" / "compiled" / "functions.c"
FUNCTIONS = re.findall(r"^u64 (\w+)\(", SOURCE.read_text(), re.MULTILINE)
U64 = ctypes.c_uint64

OPTIONS = {"O2": (), "O3": ("-O3",), "avx2": ("-O3", "-mavx2")}
"""No contraction of a product and a sum, which host and guest could do differently."""


@pytest.fixture(scope="module")
def probe() -> ProbeResult:
    return require_backend("kvm")


@pytest.fixture(scope="module", params=sorted(OPTIONS))
def options(request: pytest.FixtureRequest, probe: ProbeResult) -> tuple[str, ...]:
    """What the compiler is told beside -O2."""
    if request.param == "avx2" and ISA != "x86_64":
        skip_here("a part of x86-64")
    if request.param == "avx2" and "avx" not in probe.features.names:
        skip_here("guests have no AVX here")
    return (*OPTIONS[request.param], "-ffp-contract=off")


@pytest.fixture(scope="module")
def image(options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("compiled") / "functions"
    build(SOURCE, file, compiler=require_compiler(), simd=True, entry=None, options=options)
    return file


@pytest.fixture(scope="module", params=["supervisor", "user"])
def machine(request: pytest.FixtureRequest, image: Path, probe: ProbeResult) -> Iterator[Machine]:
    if request.param == "supervisor":
        require_capability("kvm", ISA, probe, "vector_supervisor")
    thread = {"name": "main", "entry": FUNCTIONS[0], "privilege": request.param}
    config = load_config({"binary": {"path": str(image)}, "backend": "kvm", "threads": [thread]})
    with open_machine(config) as opened:
        yield opened


@pytest.fixture(scope="module")
def host(options: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int, int], int]:
    """The same functions, compiled for this process."""
    library = tmp_path_factory.mktemp("host") / "functions.so"
    command = [require_compiler(), "-O2", *options, "-shared", "-fPIC", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True, timeout=120)
    loaded = ctypes.CDLL(str(library))

    def call(name: str, a: int, b: int) -> int:
        function = loaded[name]
        function.restype = U64
        return int(function(U64(a), U64(b)))

    return call


@pytest.mark.parametrize("function", FUNCTIONS)
def test_host_and_guest_agree(machine: Machine, host: Callable[[str, int, int], int], function: str) -> None:
    numbers = random.Random(function)
    pairs = [(0, 0), (1, 0), ((1 << 64) - 1, 1 << 63)]
    pairs += [(numbers.getrandbits(64), numbers.getrandbits(64)) for _ in range(5)]
    for a, b in pairs:
        result = machine.call(function, U64(a), U64(b), restype=U64, timeout=30)
        assert result == host(function, a, b), (hex(a), hex(b))
