"""One guest on two backends, in lock step; the first difference.

Each machine runs on its own host thread and hands over what can be observed: every exit, and, if asked, the registers
behind every instruction. Whoever is ahead waits. Threads are compared one by one: how they interleave is not.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from rift_core.catalog import Catalog
from rift_core.errors import ConfigError, UnsupportedError
from rift_tools.lanes import Difference, Lane
from rift_tools.sides import Side, python_only

if TYPE_CHECKING:
    from rift_core.config import MachineConfig

SECONDS = 60.0
"""How long a comparison may take, unless something else is asked for."""


@dataclass(frozen=True, slots=True)
class Report:
    """``observations`` were the same; ``difference`` is None if all were. ``limited``: it was not run to its end.

    :param running: where the threads were when the time was over, in words, by backend; None: it was not.
    """

    backends: tuple[str, str]
    observations: int
    difference: Difference | None
    limited: bool = False
    running: tuple[tuple[str, tuple[str, ...]], ...] | None = None


def _private(side: Side) -> list[range]:
    """Guest-physical memory that is Rift's own: page tables, descriptors, exception stacks. CPUs mark pages at
    different times, and hypervisors leave different frames behind."""
    plan = side.machine.engine.plan
    own = [area for name, area in plan.areas.items() if not name.endswith("/stack")]
    return [range(area.physical, area.physical + area.size) for area in (plan.tables, *own)]


def _memory(side: Side) -> dict[int, bytes]:
    """Guest-physical memory by page, but for what is Rift's own."""
    private = _private(side)
    pages = {}
    for region in side.machine.memory.regions:
        data = bytes(region.host)
        for at in range(0, len(data), 0x1000):
            address = region.guest_address + at
            page = data[at : at + 0x1000]
            if page.strip(b"\0") and not any(address in part for part in private):
                pages[address] = page
    return pages


def _memory_difference(sides: tuple[Side, Side], number: int) -> Difference | None:
    first, second = (_memory(side) for side in sides)
    for address in sorted(first.keys() | second.keys()):
        pages = [memory.get(address, bytes(0x1000)) for memory in (first, second)]
        at = next((at for at, (a, b) in enumerate(zip(*pages, strict=False)) if a != b), None)
        if at is not None:
            words = tuple(
                (side.backend, f"memory at guest-physical {address + at:#x}: {page[at : at + 8].hex(' ')}")
                for side, page in zip(sides, pages, strict=True)
            )
            return Difference(number, "at the end", words)
    outputs = [side.console.getvalue() for side in sides]
    if outputs[0] != outputs[1]:
        words = tuple(
            (side.backend, f"console: {output[-200:]!r}") for side, output in zip(sides, outputs, strict=True)
        )
        return Difference(number, "at the end", words)
    return None


def _only(config: MachineConfig, name: str) -> MachineConfig:
    """The same with one of its threads.

    :raises ConfigError: it has none of that name.
    """
    threads = tuple(thread for thread in config.threads if thread.name == name)
    if not threads:
        known = ", ".join(thread.name for thread in config.threads) or "main"
        raise ConfigError(f"there is no thread {name!r} to compare (there are: {known})")
    return replace(config, threads=threads)


def compare(
    first: MachineConfig,
    second: MachineConfig,
    *,
    instructions: bool = False,
    limit: int | None = None,
    seconds: float = SECONDS,
    thread: str | None = None,
) -> Report:
    """Run two configurations that differ in the backend.

    :param instructions: compare registers behind every instruction as well; both must be able to step.
    :param limit: observations at most.
    :param seconds: how long it may take at most: a guest may wait for ever for what only its own host does.
    :param thread: the name of the only thread that is to run; all of them unless given.
    :raises UnsupportedError: the instructions of several threads, whose interleaving is never the same twice.
    :raises RiftError: one of them cannot run it.
    """
    if thread is not None:
        first, second = (_only(config, thread) for config in (first, second))
    if instructions and len(first.threads) > 1:
        names = ", ".join(each.name for each in first.threads)
        raise UnsupportedError(
            f"the guest has {len(first.threads)} threads ({names}), which interleave differently in every run: what "
            "one executes while it waits for another cannot be compared. Choose one thread, or compare exits only"
        )
    catalog = python_only(Catalog.installed())
    sides: list[Side] = []
    try:
        for config in (first, second):
            sides.append(Side(config, catalog, instructions))  # noqa: PERF401 - what was made is closed
        for side in sides:
            side.start()
        return _follow((sides[0], sides[1]), limit, time.monotonic() + seconds)
    finally:
        for side in sides:
            side.close()


def _follow(sides: tuple[Side, Side], limit: int | None, deadline: float) -> Report:
    """Compare thread by thread, whichever has something; never wait for one while another could go on."""
    backends = (sides[0].backend, sides[1].backend)
    lanes = [Lane(name, sides) for name in sides[0].queues]
    number = 0
    while limit is None or number < limit:
        running = [side.running for side in sides]
        found = False
        for lane in lanes:
            if not lane.ready():
                continue
            found = True
            difference = lane.compare(number)
            if difference is not None:
                return Report(backends, number, difference)
            number += 1
        for side in sides:
            if side.failure is not None:
                raise side.failure
        if time.monotonic() > deadline:
            places = tuple((side.backend, tuple(side.whereabouts())) for side in sides)
            return Report(backends, number, None, limited=True, running=places)
        if found:
            continue
        if not any(running):
            left = next((lane.unmatched(number) for lane in lanes if lane.unmatched(number)), None)
            return Report(backends, number, left or _memory_difference(sides, number))
        time.sleep(0.0005)
    return Report(backends, number, None, limited=True)
