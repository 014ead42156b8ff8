"""What a backend provides: a virtual machine and its vCPUs, and what it says of itself beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from rift_core.exits import Exit, ExitHandler, ExitKind
    from rift_core.memory import Gpa, MemoryRegion


@dataclass(frozen=True, slots=True)
class Limits:
    """What a layout must respect. ``reserved`` are guest-physical windows that the hypervisor keeps."""

    page_size: int = 0x1000
    gpa_bits: int = 36
    max_slots: int = 32
    max_vcpus: int = 64
    max_vms: int = 1
    reserved: tuple[range, ...] = ()


@dataclass(frozen=True, slots=True)
class CpuFeatures:
    """What the guest's CPU has.

    ``names`` are lower-case words shared by a backend's binding and the ISA (x86-64: ``sse``, ``avx``,
    ``smep``, ``smap``, ``la57``, ``pcid``, ``syscall``, ...): features that work in supervisor mode on
    this backend. ``page_sizes`` are usable first-stage page sizes in bytes, ascending. ``xcr0`` is the
    mask of usable XCR0 bits (x86-64), ``id_registers`` the ISA's identification registers by name.
    """

    page_sizes: tuple[int, ...] = (0x1000, 0x20_0000)
    names: frozenset[str] = frozenset()
    xcr0: int = 0
    id_registers: Mapping[str, int] = field(default_factory=dict)


PLATFORM = "platform"
"""Name of the check that fails where a backend is not meant for this kind of host at all."""


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``rift doctor``: ``status`` is ``pass``, ``warn`` or ``fail``.

    The command says ``n/a`` of a backend that is for another platform.
    """

    name: str
    status: str
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """Whether a backend works here, and what it can do.

    ``reason`` is one sentence; ``remedy`` says what to do where it does not work. ``isas`` are the guest
    ISAs that it can run here; empty: every one that a binding is installed for. ``machine`` names the kind
    of machine for the list of expected gaps (``kvm-pvm``, ``kvm-svm``, ``kvm-vmx``, ``fake``, ...).
    ``emulated``: guests run on a software CPU, slower than on a hypervisor, and not isolated from the host by
    hardware; users are told. ``by_isa``: of a backend that runs several ISAs here, the whole result where it is
    another one for an ISA.
    """

    available: bool
    reason: str
    remedy: str = ""
    isas: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    features: CpuFeatures = field(default_factory=CpuFeatures)
    capabilities: frozenset[str] = frozenset()
    exit_kinds: frozenset[ExitKind] = frozenset()
    machine: str = ""
    emulated: bool = False
    checks: tuple[Check, ...] = ()
    by_isa: Mapping[str, ProbeResult] = field(default_factory=dict)

    def for_isa(self, isa: str) -> ProbeResult:
        """What holds for guests of that ISA."""
        return self.by_isa.get(isa, self)


@dataclass(frozen=True, slots=True)
class Binding:
    """Where one backend meets one ISA.

    ``native`` is the address of the backend's own versioned struct of function pointers (see the
    backend's public header), ``implementation`` a Python object for backends that are written in Python;
    ``owner`` keeps the code alive.
    """

    backend: str
    isa: str
    native: int = 0
    implementation: object = None
    owner: object = None


@dataclass(frozen=True, slots=True)
class VmSpec:
    """What the machine asks of ``rift_create_vm``."""

    isa: str
    binding: Binding
    features: CpuFeatures
    max_vcpus: int = 64
    interrupts: bool = False


class Watchpoint(NamedTuple):
    """Data whose access stops the guest: ``size`` is 1, 2, 4 or 8 bytes, ``address`` a multiple of it."""

    address: int
    size: int
    access: Literal["write", "read", "access"]  # "access": either


class VCpu(Protocol):
    """One virtual CPU. Every method but :meth:`kick` belongs to the owner, the host thread that made or
    adopted it; from any other thread they raise ``StateError``.

    Register names are the ISA's, lower case. Values are non-negative integers of the register's width.
    """

    @property
    def index(self) -> int:
        """Number in its VM, from 0."""

    @property
    def exit_count(self) -> int:
        """Exits so far, those served natively included. Any thread may read it."""

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        """Registers by name, in one batch.

        An access that is open (a read exit without its reply) is completed first with the value 0.
        :raises HypervisorError: a name the backend does not know, or a failed call.
        """

    def write_registers(self, values: Mapping[str, int]) -> None:
        """Set registers, in one batch. They take effect at the next :meth:`run`.

        :raises HypervisorError: a name or value the backend does not take.
        """

    def run(self, reply: int | None = None) -> Exit:
        """Run the guest until an exit that no native handler takes.

        ``reply`` answers the open read of the exit before; None stores nothing. A native handler's
        RIFT_STOP ends it too: :attr:`stopped` then has the status. A kick, or a signal on
        the process's main thread, gives INTERRUPTED, with every access complete.

        :raises HypervisorError: the hypervisor refused, or a native handler returned -errno.
        """

    @property
    def stopped(self) -> int | None:
        """Status of the RIFT_STOP that ended the last :meth:`run`, or None."""

    def kick(self) -> None:
        """Make :meth:`run` return INTERRUPTED soon: the one in progress, or the next. Any thread; never lost;
        harmless after :meth:`close`."""

    def inject_exception(self, vector: int, code: int | None = None) -> None:
        """Deliver an exception at the next entry; the numbers are those of :class:`rift_core.exits.Fault`.

        :raises UnsupportedError: without the capability ``inject_exception``.
        """

    def inject_interrupt(self, vector: int) -> None:
        """Deliver an external interrupt as soon as the guest takes one; it ends a HALT that the guest waits in.

        One can wait at a time.
        :raises UnsupportedError: without the capability ``inject_interrupt``.
        :raises StateError: another one waits.  :raises HypervisorError: no such vector.
        """

    def drop_events(self) -> None:
        """Forget what the run before has left: exceptions and interrupts whose delivery was cut short or which wait,
        an exit that is still to be reported. An open access is completed. A run that begins with registers of its
        own comes after this; a new vCPU has nothing to forget.
        """

    def set_debug(
        self,
        *,
        single_step: bool = False,
        software: bool = False,
        breakpoints: Sequence[int] = (),
        watchpoints: Sequence[Watchpoint] = (),
    ) -> None:
        """Choose what stops the guest with a DEBUG exit; replaces what was chosen before.

        :param single_step: each instruction, after it.
        :param software: the ISA's breakpoint instruction (INT3, BRK), which then does not reach the guest;
            the program counter stays at it. Any other choice may include it.
        :param breakpoints: instructions at these addresses, before them: by the CPU's debug registers.
        :param watchpoints: these accesses; the exit names the data's address.
        :raises UnsupportedError: without ``debug_single_step``, ``debug_sw_breakpoint``, ``debug_hw_breakpoint``,
            ``debug_watchpoint``, or an access that the CPU cannot watch for.
        :raises HypervisorError: more breakpoints and watchpoints than the CPU has.
        """

    def save(self) -> bytes:
        """The whole state, opaque and versioned by the binding."""

    def restore(self, state: bytes) -> None:
        """Take a state of :meth:`save` of the same backend and ISA.

        :raises HypervisorError: another version, or damaged.
        """

    def park(self) -> None:
        """Give up ownership; afterwards :meth:`adopt` may be called on another thread."""

    def adopt(self) -> None:
        """Become the owner of a parked vCPU."""

    def close(self) -> None:
        """Release it. Twice is harmless."""


class Vm(Protocol):
    """One virtual machine: second-stage memory, native handlers, vCPUs."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Names from ``docs/capabilities.md``."""

    @property
    def exit_kinds(self) -> frozenset[ExitKind]:
        """Exits that can occur here."""

    def map_memory(self, region: MemoryRegion) -> None:
        """Make a region visible to the guest. The VM keeps ``region.host`` alive until it is unmapped.

        It is shared, not copied: the host writes there afterwards, the first contents of a machine included.

        :raises HypervisorError: misaligned or overlapping; nothing has changed then.
        """

    def unmap_memory(self, guest_address: Gpa) -> None:
        """Take the region that starts there from the guest."""

    def flush_translations(self) -> None:
        """Make every vCPU see page-table entries that the host has changed."""

    def code_changed(self, guest_address: Gpa, size: int) -> None:
        """Make every vCPU see instructions that the host has written there: some CPUs, and emulators, keep copies.

        Any thread. Memory that is no region of this VM is passed over.
        """

    def atomic(self) -> AbstractContextManager[None]:
        """``with vm.atomic():`` the host's reads and writes of guest words in the block are atomic for the guest.

        Where the CPU's atomic instructions work across host and guest it does nothing: the host uses them, or the
        guest's own protocol. Without the capability ``parallel_vcpus`` a guest's atomic instruction is atomic only
        because nobody else touches memory meanwhile: there no vCPU is in the guest during the block. Keep it
        short, and wait for no guest in it. Any thread; it may be nested.
        """

    def install(self, handler: ExitHandler) -> None:
        """Install ``handler.native``; before the first vCPU runs.

        :raises HypervisorError: another ABI version, or an overlap.
        """

    def create_vcpu(self, index: int) -> VCpu:
        """A vCPU owned by the calling thread."""

    def close(self) -> None:
        """Release everything; vCPUs are closed already. Twice is harmless."""
