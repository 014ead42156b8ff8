"""Why a guest stopped, who answers, and with what."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.backend import VCpu


class ExitKind(IntEnum):
    """A closed list; the numbers are those of ``enum rift_exit_kind`` in ``rift_abi.h``.

    What ``Exit.address``, ``size``, ``value`` and ``info`` mean is documented in ``rift_abi.h``, per kind. A
    HYPERCALL has the same registers on every backend, those of ``rift_hypercall`` in the ISA's guest runtime: RAX with
    RDI, RSI, RDX, R10, R8, R9; X0 with X1 to X6.
    """

    HALT = 1
    PORT_IO = 2
    MMIO = 3
    HYPERCALL = 4
    SYSTEM_REGISTER = 5
    DEBUG = 6
    MEMORY_FAULT = 7
    SHUTDOWN = 8
    POWER_OFF = 9
    RESET = 10
    UNKNOWN = 11
    INTERRUPTED = 12
    FAIL_ENTRY = 13
    USER_CALL = 14


class Exit(NamedTuple):
    """One exit. A NamedTuple because one is made at every exit that Python sees."""

    kind: ExitKind
    address: int = 0
    size: int = 0
    value: int = 0
    is_write: bool = False
    raw_reason: int = 0
    info: tuple[int, ...] = ()

    def __str__(self) -> str:
        name = self.kind.name
        if self.kind in (ExitKind.PORT_IO, ExitKind.MMIO, ExitKind.SYSTEM_REGISTER):
            where = {ExitKind.PORT_IO: "port", ExitKind.MMIO: "guest-physical", ExitKind.SYSTEM_REGISTER: "register"}[
                self.kind
            ]
            if self.is_write:
                return f"{name} write of {self.value:#x} ({self.size} bytes) to {where} {self.address:#x}"
            return f"{name} read of {self.size} bytes from {where} {self.address:#x}"
        if self.kind is ExitKind.USER_CALL:
            return f"USER_CALL number {self.address:#x}, arguments {', '.join(f'{a:#x}' for a in self.info)}"
        if self.kind is ExitKind.UNKNOWN:
            return f"UNKNOWN exit (raw reason {self.raw_reason})"
        return f"{name} at {self.address:#x}" if self.address else name


@dataclass(frozen=True, slots=True)
class Resume:
    """Go on. ``value`` answers a read or a call; it is ignored after a write."""

    value: int = 0


@dataclass(frozen=True, slots=True)
class Fault:
    """Go on with an exception in the guest.

    On x86-64 ``vector`` and error code; on AArch64 the exception class (ESR_EL1.EC) and its syndrome (ISS).
    As the answer to a call from user mode it is -EFAULT.
    """

    vector: int
    code: int = 0


@dataclass(frozen=True, slots=True)
class Stop:
    """End the guest thread, in order. What ``Thread.join`` returns.

    ``reason`` is one of ``exit`` (the exit handler), ``return`` (the entry function returned),
    ``halt``, ``killed``, ``power-off``, ``reset``, or a handler's own word.
    """

    status: int = 0
    reason: str = "exit"


ExitResult = Resume | Fault | Stop
"""What an exit handler may answer."""


@dataclass(frozen=True, slots=True)
class NativeHandler:
    """A ``rift_exit_fn`` of some extension module, as integers; ``owner`` keeps function and context alive."""

    address: int
    context: int
    owner: object


@dataclass(frozen=True, slots=True)
class ExitHandler:
    """Who answers which exits.

    :param name: shown in messages, unique in a machine.
    :param kinds: the exits it serves.
    :param where: ports, guest-physical addresses, hypercall or user-call numbers, system registers;
        None for kinds that have no address (HALT, SHUTDOWN, ...), or for "all of them".
    :param handle: the Python half: a result, or None for "not mine".
    :param native: the C half, asked first and without waking Python.
    :param fallback: asked only when no other handler's range takes the exit; only fallbacks may overlap.
    :param finish: called at the end of each run of a guest thread and of each call, on its host thread: hands
        on what the handler has put off, such as buffered output. Several at a time.
    """

    name: str
    kinds: frozenset[ExitKind]
    where: range | None
    handle: Callable[[VCpu, Exit], ExitResult | None]
    native: NativeHandler | None = None
    fallback: bool = False
    finish: Callable[[], None] | None = None
