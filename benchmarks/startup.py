"""From a validated configuration and a loaded binary to the first exit; and the cold ways beside it."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pairs import Result, compare
from benchmarks.twin import STATE, TwinPart, TwinPlan, TwinState, library, twin_mappings
from rift_core import Machine, load_config, open_machine
from rift_core.assembly import assemble, choose_backend, load_binary, plan_machine
from rift_core.catalog import Catalog

if TYPE_CHECKING:
    from rift_core.assembly import Assembly

SOURCE = """
.globl main, direct
.text
main:   xorl %eax, %eax
        ret
direct: xorl %eax, %eax
        movabsq %rax, 0x70000800
        hlt
.section .rodata
        .fill 8192, 1, 0x55
.data
        .fill 8192, 1, 0x66
.bss
        .skip 65536
"""


def build_image(folder: Path) -> Path:
    """A small static image: text, rodata, data, bss."""
    source, image = folder / "image.s", folder / "image"
    source.write_text(SOURCE)
    command = ["gcc", "-nostdlib", "-static", "-Wl,-e,main", "-Wl,--build-id=none", "-Wl,-z,noexecstack"]
    subprocess.run([*command, "-o", image, source], check=True)
    return image


def startup(pairs: int) -> Result:
    """Rift assembles a machine and calls a function that returns at once; the twin does it by hand."""
    lib = library()
    with tempfile.TemporaryDirectory() as name:
        image = build_image(Path(name))
        catalog = Catalog.installed()
        config = load_config(
            {"binary": {"path": str(image)}, "backend": {"name": "kvm"}, "threads": []}, catalog=catalog
        )
        binary = load_binary(config, catalog)
        backend = choose_backend(config, catalog, binary.isa)

        def ours() -> float:
            begin = time.perf_counter()
            machine = Machine(plan_machine(config, catalog, binary, backend))
            machine.call("main", restype=None)
            spent = time.perf_counter() - begin
            machine.close()
            return spent

        twin = twin_plan(image, assemble(config, catalog))

        def bare() -> float:
            spent = lib.twin_start(twin)
            if not spent:
                raise AssertionError("the twin's guest did not reach its store")
            return float(spent) / 1e9

        return compare("startup", "validated configuration to first exit", ours, bare, pairs=pairs, promise="<= 1.5")


def twin_plan(image: Path, assembly: Assembly) -> TwinPlan:
    """The same machine for ``twin_start``: what Rift has planned, and the state that it gives a vCPU."""
    with Machine(assembly) as sample:
        sample.call("main", restype=None)
        (context,) = sample.engine.contexts
        state = context.acquire_vcpu().read_registers(STATE)
        direct = sample.symbol("direct").address
    layout = assembly.plan
    whole = image.read_bytes()
    parts = [
        TwinPart(whole.index(bytes(p.segment.data)) + p.offset, p.size, p.physical) for p in layout.placements
    ]
    mappings = twin_mappings(layout.mappings)
    return TwinPlan(
        str(image).encode(),
        (TwinPart * len(parts))(*parts),
        len(parts),
        mappings,
        len(mappings),
        layout.ram.physical,
        layout.ram.size,
        layout.tables.physical,
        TwinState.of(state | {"cr3": layout.tables.physical}),
        direct,
        layout.tables.virtual,  # a mapped page; nothing is pushed
    )


def cold(runs: int = 5) -> dict[str, float]:
    """Median seconds of ``open_machine(path)`` in this process, and of ``rift run`` as a whole process."""
    with tempfile.TemporaryDirectory() as name:
        image = build_image(Path(name))
        configuration = Path(name) / "rift.toml"
        configuration.write_text('[binary]\npath = "image"\n[backend]\nname = "kvm"\n')
        opened, ran = [], []
        for _ in range(runs):
            begin = time.perf_counter()
            open_machine(configuration).close()
            opened.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-m", "rift_core.cli", "run", str(image)], check=True, capture_output=True)
            ran.append(time.perf_counter() - begin)
    return {"open_machine(path)": statistics.median(opened), "rift run": statistics.median(ran)}
