"""Two guest threads and one Python thread work on one numpy array at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from rift_core import open_machine

HERE = Path(__file__).parent
ROUNDS = 1000
"""As in guest.c."""


def main() -> int:
    with open_machine(HERE / "rift.toml") as machine:
        cells = np.frombuffer(machine.symbol("cells").view(), dtype=np.uint64)
        ready = np.frombuffer(machine.symbol("host_ready").view(), dtype=np.uint32)
        seen: list[int] = []

        def python_thread() -> None:
            """Owns the last two cells, and watches the guest's grow."""
            ready[0] = 1
            while any(thread.state == "running" for thread in machine.threads):
                seen.append(int(cells[:-2].sum()))
                cells[-2] += 1
                cells[-1] = cells[-2] * cells[-2]

        for thread in machine.threads:
            thread.start()
        python = threading.Thread(target=python_thread)
        python.start()
        stops = [thread.join(timeout=60) for thread in machine.threads]
        python.join()

        total = int(cells[:-2].sum())
        protected = int.from_bytes(machine.symbol("protected_sum").view(), "little")
        print("how the guest threads ended:", *stops)
        print("the array:", cells)
        print(f"the guests' cells add up to {total}, as they should: {total == 2 * ROUNDS}")
        print(f"the counter behind the mutex is {protected}, as it should be: {protected == 2 * ROUNDS // 10}")
        print(f"Python looked {len(seen)} times; what it saw only ever grew: {seen == sorted(seen)}")
    return 0 if total == 2 * ROUNDS and protected == 2 * ROUNDS // 10 and seen == sorted(seen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
