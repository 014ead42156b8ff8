"""x86-64 with SVM and nested paging: the distribution's kernel with kvm_amd on QEMU's emulated AMD CPU.

It shows this machine's own file system, so that everything that is installed here is there as well.
"""

from __future__ import annotations

from pathlib import Path

from rift_lab import kernel
from rift_lab.debian import need_programs
from rift_lab.machine import Layer, Machine, Wishes

MODULES = ("virtio_pci", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay", "kvm_amd")

KVM = "lab.kvm_amd=npt=1,nested=0,avic=0,sev=0"
"""Parameters of kvm_amd: nested paging, and nothing that QEMU 7.2 does not emulate."""


def machine(repository: Path, run: Path, wishes: Wishes) -> Machine:
    """The machine, with what it needs prepared."""
    del repository, run
    need_programs(("qemu-system-x86_64", "qemu-system-x86"))
    return Machine(
        name="svm",
        program="qemu-system-x86_64",
        arguments=(
            "-machine", "q35,usb=off,vmport=off,sata=off,smbus=off,hpet=off",
            "-cpu", wishes.cpu or "max,+svm,+npt",
            # With a host thread for each CPU, QEMU 7.2 now and then hangs the kernel when it patches its own code,
            # as it does at each creation of a VM.
            "-accel", "tcg,thread=single,tb-size=512",
        ),
        console="ttyS0",
        kernel=kernel.prepare("amd64", MODULES),
        parameters=(KVM, "no_timer_check", "tsc=reliable"),
        layers=(Layer("/", (Path("/"),)),),
        memory=wishes.memory or 4096,
        cpus=wishes.cpus or 2,
    )  # fmt: skip
