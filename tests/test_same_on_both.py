"""The same guest gives the same results on KVM and on the emulator: exits, registers, memory, output."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from places import require_place

from rift_core import load_config
from rift_core.exits import ExitKind
from rift_core.testing.bench import DATA, DATA_SIZE, UNMAPPED, Bench
from rift_core.testing.guests import DEVICE, DONE, guests_for
from rift_core.testing.tools import plugin_module, require_tool
from rift_tools.comparison import compare

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.testing.guests import Guests

EXAMPLES = Path(__file__).parents[1] / "examples"
BACKENDS = ("kvm", "emulator")
VALUE = 0xF1E2_D3C4_B5A6_9788


@pytest.fixture(autouse=True)
def both() -> None:
    for name in BACKENDS:
        require_place(name, "x86_64")


@pytest.mark.parametrize("example", ["hello", "page_fault", "sandbox"])
def test_example(example: str, tmp_path: Path) -> None:
    require_tool("gcc")
    folder = shutil.copytree(EXAMPLES / example, tmp_path / example)
    overrides = {"isa.name": "x86_64"}
    first, second = (load_config(folder / "rift.toml", overrides=overrides | {"backend.name": n}) for n in BACKENDS)
    report = compare(first, second)
    assert report.difference is None, report
    assert report.observations > 2


GUESTS: dict[str, Callable[[Guests], bytes]] = {
    "stores": lambda g: b"".join(g.store(DATA + 0x40 * s, s, VALUE) for s in (1, 2, 4, 8)),
    "loads": lambda g: b"".join(g.load(DEVICE + 8 * s, s) + g.store_result(DATA + 8 * s) for s in (1, 2, 4, 8)),
    "device-stores": lambda g: b"".join(g.store(DEVICE + 8 * s, s, VALUE) for s in (1, 2, 4, 8)),
    "port-writes": lambda g: b"".join(g.port_write(0x5A0, s, VALUE & 0xFFFF_FFFF) for s in (1, 2, 4)),
    "port-reads": lambda g: b"".join(g.port_read(0x5A0, s) + g.store_result(DATA + 8 * s) for s in (1, 2, 4)),
    "port-string": lambda g: g.port_write_string(0x5A0, DATA, 5),
    "halt": lambda g: g.halt(),
    "atomic": lambda g: g.add(DATA, 200),
    "across-pages": lambda g: g.store(DATA + 0xFFD, 8, VALUE),
    "privileged": lambda g: g.privileged() + g.store_result(DATA),
    "undefined": lambda g: g.invalid(),
    "page-fault": lambda g: g.store(UNMAPPED + 0x18, 4, 1),
    "no-execute": lambda g: g.jump(DATA),
    "lost-stack": lambda g: g.use_stack(UNMAPPED),
}


def observe(backend: str, code: bytes) -> tuple[list[object], dict[str, int], bytes]:
    """Exits until the guest's end or fault, with made-up answers; then registers and data."""
    bench = Bench(plugin_module("backend", backend), "x86_64", guests_for("x86_64"))
    try:
        vcpu = bench.vcpu(code + bench.guests.end())
        exits: list[object] = []
        reply = None
        for number in range(100):
            exit = bench.run(vcpu, reply)
            exits.append((exit.kind, exit.address if exit.kind is not ExitKind.HALT else 0, *exit[2:5]))
            if exit.kind is ExitKind.MMIO and exit.is_write and exit.address not in range(DEVICE, DONE):
                break
            reply = None if exit.is_write else VALUE + number
        names = [name for name in bench.isa.general_registers if name != "rflags"]
        return exits, vcpu.read_registers(["rip", *names]), bytes(bench.memory.view(DATA, DATA_SIZE))
    finally:
        bench.close()


@pytest.mark.parametrize("name", GUESTS)
def test_machine_code(name: str) -> None:
    code = GUESTS[name](guests_for("x86_64"))
    first, second = (observe(backend, code) for backend in BACKENDS)
    assert first == second
    assert first[0]
