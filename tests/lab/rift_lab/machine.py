"""What a machine is: the numbers and files that differ between the two kinds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True)
class Layer:
    """A place in the machine's file system: it shows ``folders`` of this machine, the first on top."""

    target: str
    folders: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Machine:
    """An emulated machine, ready to be started."""

    name: str
    program: str  # of QEMU
    arguments: tuple[str, ...]  # machine, CPU, accelerator
    console: str  # device of the kernel's messages
    kernel: Path  # folder of rift_lab.kernel.prepare
    parameters: tuple[str, ...]  # further words for the kernel's command line
    layers: tuple[Layer, ...]  # of the file system, the root first
    memory: int  # MiB
    cpus: int


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user may choose; None: the machine's default."""

    cpu: str | None = None
    memory: int | None = None
    cpus: int | None = None
