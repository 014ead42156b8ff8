"""From a validated configuration and a loaded binary to the first exit; and the cold ways beside it."""

from __future__ import annotations

import ctypes
import mmap
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.pairs import Result, compare
from benchmarks.twin import STATE, library, twin_mappings
from rift_core import Machine, load_config, open_machine
from rift_core.assembly import assemble, choose_backend, load_binary, plan_machine
from rift_core.catalog import Catalog

if TYPE_CHECKING:
    from rift_core.layout import MachinePlan

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

        sample = Machine(assemble(config, catalog))
        sample.call("main", restype=None)
        (context,) = sample.engine.contexts
        state = context.acquire_vcpu().read_registers(STATE)
        layout, direct = sample.engine.plan, sample.symbol("direct").address
        mappings = twin_mappings(layout.mappings)
        offsets = file_offsets(image, layout)
        sample.close()

        def bare() -> float:
            return bare_start(lib, image, offsets, layout, mappings, state, direct)

        return compare("startup", "validated configuration to first exit", ours, bare, pairs=pairs, promise="<= 1.5")


def file_offsets(image: Path, layout: MachinePlan) -> dict[int, int]:
    """Where each segment's bytes stand in the file."""
    whole = image.read_bytes()
    return {id(p.segment): whole.index(bytes(p.segment.data)) for p in layout.placements}


def bare_start(
    lib: ctypes.CDLL,
    image: Path,
    offsets: dict[int, int],
    layout: MachinePlan,
    mappings: object,
    state: dict[str, int],
    entry: int,
) -> float:
    """Seconds of the twin."""
    begin = time.perf_counter()
    size = layout.ram.size
    ram = lib.twin_memory(size)
    file = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    with mmap.mmap(file, 0, mmap.MAP_PRIVATE, mmap.PROT_READ) as mapped:
        os.close(file)
        for placement in layout.placements:
            at = offsets[id(placement.segment)] + placement.offset
            ctypes.memmove(
                ram + placement.physical - layout.ram.physical, mapped[at : at + placement.size], placement.size
            )
    lib.twin_tables(ctypes.c_void_p(ram), layout.ram.physical, layout.tables.physical, mappings, len(mappings))  # type: ignore[arg-type]
    handle = lib.twin_open()
    lib.twin_map(handle, 0, layout.ram.physical, size, ram, 0)
    values = [layout.tables.physical if name == "cr3" else state[name] for name in STATE]
    if lib.twin_vcpu(handle, *values) < 0:
        raise OSError("the twin's vCPU cannot be made")
    lib.twin_set(handle, entry, layout.tables.virtual, 0, 0)
    reason = lib.twin_run(handle)
    spent = time.perf_counter() - begin
    lib.twin_close(handle)
    lib.twin_release(ram, size)
    if reason != 6:  # KVM_EXIT_MMIO
        raise AssertionError(f"the twin's guest left with reason {reason}")
    return spent


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
