"""Time linear and random memory accesses in the guest and in the host.

Each access increments one byte of another page, so that what is measured is mostly the two stages of address
translation. In ring 3 the guest runs natively everywhere; in ring 0 it does so on hardware with VT-x or SVM only.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from rift_core import load_config, open_machine

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
ARRAY = 256 << 20
PAGE = 4096
PATTERNS = ("linear", "random_order")


def nanoseconds(function: Callable[[int, int], int], pages: int, rounds: int, repeat: int) -> float:
    """Median time of one access, after one round that brings the pages in."""
    function(pages, 1)
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        accesses = function(pages, rounds)
        times.append((time.perf_counter_ns() - start) / accesses)
    return statistics.median(times)


def host_functions(folder: Path) -> dict[str, Callable[[int, int], int]]:
    """The same source as a library of this process, on memory of its own."""
    library = folder / "host.so"
    # It calls nothing, so that it needs no C library, nor its headers.
    options = ["-O2", "-shared", "-fPIC", "-ffreestanding", "-nostdlib"]
    subprocess.run(["gcc", *options, str(HERE / "guest.c"), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    memory = (ctypes.c_ubyte * ARRAY).from_buffer(mmap.mmap(-1, ARRAY))

    def function(pattern: str) -> Callable[[int, int], int]:
        call = getattr(loaded, pattern)
        call.restype = ctypes.c_uint64
        call.argtypes = (ctypes.c_void_p, ctypes.c_uint64, ctypes.c_uint64)
        return lambda pages, rounds: int(call(memory, pages, rounds))  # keeps the memory alive

    return {pattern: function(pattern) for pattern in PATTERNS}


def measure(privilege: str, pages: int, rounds: int, repeat: int) -> dict[str, tuple[float, float]]:
    """Nanoseconds an access, (guest, host), for each pattern."""
    results = {}
    config = load_config(HERE / "rift.toml", overrides={"threads.main.privilege": privilege})
    with tempfile.TemporaryDirectory() as folder, open_machine(config) as machine:
        host = host_functions(Path(folder))
        for pattern in PATTERNS:

            def guest(pages: int, rounds: int, pattern: str = pattern) -> int:
                return int(machine.call(f"guest_{pattern}", pages, rounds, restype=ctypes.c_uint64))

            results[pattern] = (
                nanoseconds(guest, pages, rounds, repeat),
                nanoseconds(host[pattern], pages, rounds, repeat),
            )
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--privilege", choices=("user", "supervisor"), default="user")
    parser.add_argument("--pages", type=int, default=ARRAY // PAGE, help="a power of two, at most %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="how often each page is touched in one measurement")
    parser.add_argument("--repeat", type=int, default=5, help="measurements; the median counts")
    options = parser.parse_args()
    if not 0 < options.pages <= ARRAY // PAGE or options.pages & (options.pages - 1):
        parser.error(f"--pages must be a power of two, at most {ARRAY // PAGE}")
    results = measure(options.privilege, options.pages, options.rounds, options.repeat)
    table = Table(title=f"{options.pages} pages, {options.privilege} mode")
    table.add_column("pattern")
    for column in ("guest ns/access", "host ns/access", "ratio"):
        table.add_column(column, justify="right")
    for pattern, (guest, host) in results.items():
        table.add_row(pattern, f"{guest:.2f}", f"{host:.2f}", f"{guest / host:.2f}")
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
