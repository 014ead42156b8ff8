"""What the probe must know of the instruction set of this machine's CPU: one object for each that KVM serves."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from rift_core.exits import ExitKind

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from rift_kvm import KvmConfig
    from rift_kvm.measure import Measured
    from rift_kvm.vm import KvmVm

ISAS = {"x86_64": "x86_64", "aarch64": "aarch64"}
"""``os.uname().machine`` -> ISA of its guests."""

EXIT_KINDS = frozenset({ExitKind.MMIO, ExitKind.FAIL_ENTRY, ExitKind.INTERRUPTED, ExitKind.UNKNOWN})
"""Exits that can occur on every ISA."""


@dataclass(frozen=True, slots=True)
class Host:
    """One ISA.

    ``required`` are KVM's capabilities (include/uapi/linux/kvm.h), ``reserved`` guest-physical windows that it keeps;
    ``optional_kinds`` are exits that occur where one of the capabilities was measured; ``assumed`` stands for
    measurements where the user wants none.
    """

    isa: str
    required: Mapping[str, int]
    exit_kinds: frozenset[ExitKind]
    optional_kinds: Mapping[ExitKind, tuple[str, ...]]
    reserved: tuple[range, ...]
    assumed: Measured
    measure: Callable[[KvmVm], Measured | None]
    machine: Callable[[Measured], str]
    gpa_bits: Callable[[KvmConfig, str], int]
    remedies: Mapping[str, str]  # machine -> what to do about it
    level: str  # the supervisor's, in messages


@cache
def host_isa() -> str | None:
    """The ISA of guests on this machine, None where KVM has no binding."""
    return ISAS.get(os.uname().machine)


def this_host() -> Host:
    """Of this machine, for which there is a binding."""
    if host_isa() == "aarch64":
        from rift_kvm.host_aarch64 import HOST
    else:
        from rift_kvm.host_x86_64 import HOST
    return HOST
