"""AArch64 with EL2: the distribution's arm64 kernel, whose KVM is built in, on QEMU's emulated Arm CPU.

Nothing of this machine's programs runs there, so that it gets a file system of its own (userland), the Python packages
of the tests (python_packages), and Rift's compiled parts (cross_build). The repository is there at its own path, and
``.venv/bin/python`` in it is the machine's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_lab import cross_build, kernel, python_packages, userland
from rift_lab.debian import need_programs
from rift_lab.machine import Layer, Machine, Wishes

if TYPE_CHECKING:
    from pathlib import Path

MODULES = ("virtio_pci", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay")

CPU = "max,pauth=off,sve=off"
"""KVM in VHE mode; with ``cortex-a72`` it is in nVHE mode.

Pointer authentication costs QEMU so much that the boot takes three times as long. A store by SVE, which the C library's
memcpy makes, takes old code out of QEMU 7.2's translations at its first byte only: guests then run what stood in a page
before."""


def machine(repository: Path, run: Path, wishes: Wishes) -> Machine:
    """The machine, with what it needs prepared."""
    need_programs(("qemu-system-aarch64", "qemu-system-arm"), *cross_build.NEEDS)
    root = userland.prepare()
    packages = python_packages.prepare(repository, root)
    environment = python_packages.own_distributions(repository, root, run / "environment")
    native = cross_build.build(repository, root, run / "native")
    return Machine(
        name="aarch64",
        program="qemu-system-aarch64",
        arguments=(
            "-machine", "virt,virtualization=on,gic-version=3",
            "-cpu", wishes.cpu or CPU,
            "-accel", "tcg,thread=multi",
        ),
        console="ttyAMA0",
        kernel=kernel.prepare("arm64", MODULES),
        parameters=(),
        layers=(
            Layer("/", (root,)),
            Layer(str(repository), (native, repository)),
            Layer(str(repository / ".venv"), (environment, packages)),
        ),
        memory=wishes.memory or 3072,
        cpus=wishes.cpus or 2,
    )  # fmt: skip
