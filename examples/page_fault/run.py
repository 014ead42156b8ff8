"""Run the guest, look at its page tables from outside, then let it fault where nobody helps."""

from __future__ import annotations

from pathlib import Path

from rift_core import GuestFaultError, open_machine

HERE = Path(__file__).parent
HEAP = 0x3F0000


def main() -> int:
    with open_machine(HERE / "rift.toml") as machine:
        print("before:", machine.translate(HEAP).reason)
        stop = machine.thread("main").start().join(timeout=30)
        walk = machine.translate(HEAP)
        print(f"after:  {HEAP:#x} is guest-physical {walk.physical:#x}, {walk.permissions}, dirty: {walk.dirty}")
        try:
            machine.call("stray")
        except GuestFaultError as error:
            print("a fault that the guest does not handle:\n" + str(error))
    return stop.status


if __name__ == "__main__":
    raise SystemExit(main())
