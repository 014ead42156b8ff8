"""The fake backend: virtual machines that are interpreted in Python, for tests on any host.

It keeps the whole contract of :mod:`rift_core.backend` and nothing of a hypervisor's speed: some
50,000 instructions a second. What it interprets is the business of its bindings; ``fake/x86_64`` is
built in, and any distribution may bring another (see :class:`FakeBinding`).
"""

from __future__ import annotations

import errno
import json
import threading
import zlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from rift_core.backend import Binding, CpuFeatures, Limits, ProbeResult
from rift_core.errors import AddressError, HypervisorError, StateError, UnsupportedError
from rift_core.exits import Exit, ExitKind
from rift_core.plugin import PluginInfo, Section, hookimpl
from rift_core.testing.fake_memory import PhysicalMemory

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    from rift_core.backend import VmSpec, Watchpoint
    from rift_core.exits import ExitHandler
    from rift_core.memory import Gpa, MemoryRegion
    from rift_core.testing.fake_native import NativeTable

GPA_BITS = 46
MAX_SLOTS = 64
MAX_VCPUS = 64

_KICK_STEPS = 64
"""Instructions between two looks at the kick word."""

_SAVED_STATE = b"rift-fake-1 "

_CAPABILITIES = frozenset(
    {"parallel_vcpus", "multiple_vms", "readonly_memory", "debug_single_step", "debug_hw_breakpoint", "save_restore"}
)
"""What the backend adds whatever the ISA; a binding with ``inject`` adds ``inject_exception``."""

_BASE_KINDS = frozenset({ExitKind.MMIO, ExitKind.DEBUG, ExitKind.INTERRUPTED})

_STEP, _HARDWARE = 1, 3  # info[0] of a DEBUG exit, see rift_abi.h


class FakeBinding(Protocol):
    """What a binding ``fake/ISA`` puts into ``Binding.implementation``: an interpreter of one instruction at a time.

    One object serves all vCPUs of all VMs, on several threads: what belongs to a vCPU stands in its ``state``,
    a dict with the value of every register of ``registers``. Keys that begin with ``_`` are the binding's
    own scratch (a translation cache, a note between :meth:`step` and :meth:`complete`); the backend drops
    them between two instructions, without asking, whenever the host changes registers, page tables or memory.

    Further attributes that a binding may have:

    - ``exit_kinds: frozenset[ExitKind]``: exits that its guests can cause, beside MMIO and DEBUG;
    - ``capabilities: frozenset[str]``: capabilities to add;
    - ``reset(index: int) -> dict[str, int]``: registers of a fresh vCPU; without it all are 0;
    - ``inject(state, memory, vector: int, code: int | None) -> Exit | None``: deliver an exception;
      it makes the capability ``inject_exception``.
    """

    @property
    def registers(self) -> Mapping[str, int]:
        """Name to width in bits, of every register of the ISA."""

    @property
    def program_counter(self) -> str:
        """Its name: what breakpoints are compared with."""

    def step(self, state: dict[str, Any], memory: PhysicalMemory) -> Exit | None:
        """Execute one instruction. None: done, go on.

        An exit of a write, or of an instruction without data, is returned with the instruction done. A read
        exit (MMIO, port or system register, ``is_write`` False) or a HYPERCALL leaves it open:
        :meth:`complete` finishes it. ``memory.read`` gives None, ``memory.write`` False, where no memory is:
        that is how an MMIO exit arises; its ``address`` is guest-physical, its ``size`` 1 to 8 bytes.
        Whatever the guest does, step must return: an undefined instruction is the guest's exception, or SHUTDOWN.
        """

    def complete(self, state: dict[str, Any], exit: Exit, reply: int) -> bool | None:
        """Finish the read exit with the value that the host read.

        Either store ``reply`` where it belongs, move the program counter on and return None; or note it in
        the scratch and return True: then :meth:`step` is called at once and must finish the instruction.
        """


class FakeVCpu:
    """A vCPU of the fake backend: see :class:`rift_core.backend.VCpu`."""

    def __init__(self, vm: FakeVm, index: int) -> None:
        self._vm = vm
        self._index = index
        self._binding = vm.interpreter
        self._memory = vm.memory
        widths = self._binding.registers
        reset = getattr(self._binding, "reset", None)
        self._state: dict[str, Any] = {**dict.fromkeys(widths, 0), **(reset(index) if reset else {})}
        self._owner = threading.get_ident()  # 0: parked
        self._lock = threading.Lock()
        self._kicked = threading.Event()  # wakes the wait of a native handler too
        self._flush = False
        self._open: Exit | None = None  # a read exit without its reply
        self._queued: Exit | None = None
        self._exit_count = 0
        self._stopped: int | None = None
        self._single_step = False
        self._breakpoints: frozenset[int] = frozenset()
        self._resume_at: int | None = None  # the breakpoint that the last exit reported
        self._running = False
        self._closed = False

    @property
    def index(self) -> int:
        return self._index

    @property
    def exit_count(self) -> int:
        return self._exit_count

    @property
    def stopped(self) -> int | None:
        return self._stopped

    @property
    def kicked(self) -> threading.Event:
        """Set by a kick, cleared by the run that it ends: what a native handler's wait looks at."""
        return self._kicked

    @property
    def widths(self) -> Mapping[str, int]:
        """Register names and their bits."""
        return self._binding.registers

    def read_registers(self, names: Sequence[str]) -> dict[str, int]:
        self._mine()
        self._complete(0)
        return self.peek(names)

    def peek(self, names: Sequence[str]) -> dict[str, int]:
        """Registers as they are, an open access left open: for native handlers, which are called inside one."""
        widths, state = self._binding.registers, self._state
        for name in names:
            if name not in widths:
                raise HypervisorError("read_registers", errno.EINVAL, f"fake/{self._vm.isa} has no register {name!r}")
        return {name: state[name] for name in names}

    def write_registers(self, values: Mapping[str, int]) -> None:
        self._mine()
        self._complete(0)
        self.poke(values)

    def poke(self, values: Mapping[str, int]) -> None:
        """Set registers and leave an open access open: for native handlers."""
        widths = self._binding.registers
        for name, value in values.items():
            if name not in widths:
                raise HypervisorError("write_registers", errno.EINVAL, f"fake/{self._vm.isa} has no register {name!r}")
            if not 0 <= value < 1 << widths[name]:
                text = f"{name} has {widths[name]} bits, not {value:#x}"
                raise HypervisorError("write_registers", errno.EINVAL, text)
        self._drop_scratch()
        self._state.update(values)
        self._resume_at = None

    def run(self, reply: int | None = None) -> Exit:
        self._mine()
        self._running = True
        try:
            return self._run(reply)
        finally:
            self._running = False

    def _run(self, reply: int | None) -> Exit:
        self._stopped = None
        self._complete(0 if reply is None else reply)
        exit = self._queued
        self._queued = None
        while True:
            if exit is None:
                exit = self._enter()
            if exit.kind is ExitKind.INTERRUPTED:
                return exit
            self._exit_count += 1
            if not self._is_write(exit):
                self._open = exit
            natives = self._vm.natives
            answer = natives.serve(self, self._vm.memory, exit) if natives is not None else None
            if answer is None:
                return exit
            if answer.stopped:
                self._stopped = answer.value
                self._complete(0)
                return exit
            self._complete(answer.value)
            exit = self._queued
            self._queued = None

    def kick(self) -> None:
        self._kicked.set()

    def inject_exception(self, vector: int, code: int | None = None) -> None:
        self._mine()
        inject = getattr(self._binding, "inject", None)
        if inject is None:
            raise UnsupportedError(f"fake/{self._vm.isa} has no capability inject_exception")
        self._open = None  # the access has failed: the exception stands in its place
        self._drop_scratch()
        self._queued = inject(self._state, self._memory, vector, code)

    def drop_events(self) -> None:
        self._mine()
        self._open = None
        self._drop_scratch()
        self._queued = None

    def inject_interrupt(self, vector: int) -> None:
        self._mine()
        raise UnsupportedError(f"fake/{self._vm.isa} has no capability inject_interrupt")

    def set_debug(
        self,
        *,
        single_step: bool = False,
        software: bool = False,
        breakpoints: Sequence[int] = (),
        watchpoints: Sequence[Watchpoint] = (),
    ) -> None:
        self._mine()
        for capability, asked in (("debug_sw_breakpoint", software), ("debug_watchpoint", watchpoints)):
            if asked:
                raise UnsupportedError(f"fake/{self._vm.isa} has no capability {capability}")
        self._single_step = single_step
        self._breakpoints = frozenset(breakpoints)

    def save(self) -> bytes:
        self._mine()
        self._complete(0)
        registers = {name: self._state[name] for name in self._binding.registers}
        body = json.dumps({"isa": self._vm.isa, "registers": registers}).encode()
        return _SAVED_STATE + b"%08x " % zlib.crc32(body) + body

    def restore(self, state: bytes) -> None:
        self._mine()
        head, rest = state[: len(_SAVED_STATE)], state[len(_SAVED_STATE) :]
        checksum, body = rest[:9], rest[9:]
        if head != _SAVED_STATE or checksum != b"%08x " % zlib.crc32(body):
            raise HypervisorError("restore", errno.EINVAL, "damaged, or not of this version of the fake backend")
        saved = json.loads(body)
        if saved["isa"] != self._vm.isa or saved["registers"].keys() != self._binding.registers.keys():
            raise HypervisorError("restore", errno.EINVAL, f"a state of {saved['isa']}, this is {self._vm.isa}")
        self._open = self._queued = self._resume_at = None
        self._state = saved["registers"]

    def park(self) -> None:
        self._mine()
        self._complete(0)
        self._owner = 0

    def adopt(self) -> None:
        with self._lock:
            if self._closed or self._owner:
                raise StateError(f"vCPU {self._index} is {'closed' if self._closed else 'not parked'}")
            self._owner = threading.get_ident()

    def close(self) -> None:
        if self._closed:
            return
        if self._running:
            raise StateError(f"vCPU {self._index} is running: kick it first")
        self._closed = True
        self._vm.forget(self)

    def drop_translations(self) -> None:
        """Forget what was cached, before the next instruction. Any thread."""
        self._flush = True

    def _mine(self) -> None:
        if self._owner != threading.get_ident():
            what = "is parked: adopt it first" if not self._owner else "belongs to another thread"
            raise StateError(f"vCPU {self._index} {what}")
        if self._closed:
            raise StateError(f"vCPU {self._index} is closed")

    def _drop_scratch(self) -> None:
        self._flush = False
        self._state = {name: value for name, value in self._state.items() if name[0] != "_"}

    @staticmethod
    def _is_write(exit: Exit) -> bool:
        if exit.kind in (ExitKind.PORT_IO, ExitKind.MMIO, ExitKind.SYSTEM_REGISTER):
            return exit.is_write
        return exit.kind is not ExitKind.HYPERCALL

    def _complete(self, reply: int) -> None:
        exit = self._open
        if exit is None:
            return
        self._open = None
        if exit.size:
            reply &= (1 << 8 * exit.size) - 1
        if self._binding.complete(self._state, exit, reply & (1 << 64) - 1):
            self._queued = self._binding.step(self._state, self._memory)

    def _enter(self) -> Exit:
        """Interpret until an exit or a kick. A Python signal handler may raise from here: an instruction
        works on a copy of the state then, so that the registers are those before it."""
        step, memory, kicked = self._binding.step, self._memory, self._kicked
        careful = threading.current_thread() is threading.main_thread()
        while True:
            if kicked.is_set():
                kicked.clear()
                return Exit(ExitKind.INTERRUPTED)
            if self._flush:
                self._drop_scratch()
            if self._single_step or self._breakpoints:
                exit = self._debug_step()
                if exit is not None:
                    return exit
                continue
            if careful:
                for _ in range(_KICK_STEPS):
                    state = self._state.copy()
                    exit = step(state, memory)
                    self._state = state
                    if exit is not None:
                        return exit
            else:
                state = self._state
                for _ in range(_KICK_STEPS):
                    exit = step(state, memory)
                    if exit is not None:
                        return exit

    def _debug_step(self) -> Exit | None:
        name = self._binding.program_counter
        pc = self._state[name]
        if pc in self._breakpoints and pc != self._resume_at:
            self._resume_at = pc
            return Exit(ExitKind.DEBUG, pc, info=(_HARDWARE, 0, 0))
        self._resume_at = None
        state = self._state.copy()
        exit = self._binding.step(state, self._memory)
        self._state = state
        if exit is None and self._single_step:
            self._resume_at = state[name]
            return Exit(ExitKind.DEBUG, state[name], info=(_STEP, 0, 0))
        return exit


class FakeVm:
    """A virtual machine of the fake backend: see :class:`rift_core.backend.Vm`."""

    def __init__(self, spec: VmSpec) -> None:
        interpreter = spec.binding.implementation
        if interpreter is None:
            raise HypervisorError("create_vm", errno.EINVAL, f"binding fake/{spec.isa} has no implementation")
        self.isa = spec.isa
        self.interpreter: FakeBinding = interpreter  # type: ignore[assignment]
        self.memory = PhysicalMemory(GPA_BITS, MAX_SLOTS)
        self.natives: NativeTable | None = None
        self._max_vcpus = min(spec.max_vcpus, MAX_VCPUS)
        self._vcpus: dict[int, FakeVCpu] = {}
        self._closed = False

    @property
    def capabilities(self) -> frozenset[str]:
        return capabilities_of(self.interpreter)

    @property
    def exit_kinds(self) -> frozenset[ExitKind]:
        return exit_kinds_of(self.interpreter)

    def map_memory(self, region: MemoryRegion) -> None:
        self._check_open()
        self.memory.add(region)

    def unmap_memory(self, guest_address: Gpa) -> None:
        self._check_open()
        try:
            self.memory.remove(guest_address)
        except AddressError as error:
            raise HypervisorError("unmap_memory", errno.ENOENT, str(error)) from error

    def code_changed(self, guest_address: Gpa, size: int) -> None:
        self.flush_translations()

    def flush_translations(self) -> None:
        for vcpu in list(self._vcpus.values()):
            vcpu.drop_translations()

    def atomic(self) -> AbstractContextManager[None]:
        return nullcontext()

    def install(self, handler: ExitHandler) -> None:
        self._check_open()
        if handler.native is None:
            return
        if self.natives is None:
            try:
                from rift_core.testing.fake_native import NativeTable
            except ImportError:
                return  # without cffi the exits come to the handler's Python half
            self.natives = NativeTable()
        self.natives.add(handler)

    def create_vcpu(self, index: int) -> FakeVCpu:
        self._check_open()
        if not 0 <= index < self._max_vcpus:
            raise HypervisorError("create_vcpu", errno.EINVAL, f"index {index} is not below {self._max_vcpus}")
        if index in self._vcpus:
            raise HypervisorError("create_vcpu", errno.EEXIST, f"vCPU {index} exists")
        vcpu = self._vcpus[index] = FakeVCpu(self, index)
        return vcpu

    def forget(self, vcpu: FakeVCpu) -> None:
        """The vCPU was closed."""
        self._vcpus.pop(vcpu.index, None)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._vcpus.clear()
        self.memory.clear()
        self.natives = None

    def _check_open(self) -> None:
        if self._closed:
            raise StateError("the virtual machine is closed")


def capabilities_of(interpreter: FakeBinding) -> frozenset[str]:
    """Capabilities of the fake backend with this binding."""
    own: frozenset[str] = getattr(interpreter, "capabilities", frozenset())
    injects = {"inject_exception"} if hasattr(interpreter, "inject") else set()
    return _CAPABILITIES | own | injects


def exit_kinds_of(interpreter: FakeBinding) -> frozenset[ExitKind]:
    """Exits that can occur with this binding."""
    own: frozenset[ExitKind] = getattr(interpreter, "exit_kinds", frozenset())
    return _BASE_KINDS | own


class FakeConfig(Section):
    """``[backend] name = "fake"`` has no keys."""


def probe(config: Section) -> ProbeResult:
    """Always available."""
    from rift_core.testing.fake_x86_64 import FEATURES, X86_64

    interpreter = X86_64()
    return ProbeResult(
        available=True,
        reason="interpreted in Python: works everywhere, for tests",
        limits=Limits(gpa_bits=GPA_BITS, max_slots=MAX_SLOTS, max_vcpus=MAX_VCPUS, max_vms=1 << 16),
        features=CpuFeatures(page_sizes=(0x1000, 0x20_0000, 0x4000_0000), names=FEATURES),
        capabilities=capabilities_of(interpreter),
        exit_kinds=exit_kinds_of(interpreter),
        machine="fake",
    )


@hookimpl
def rift_plugin() -> Sequence[PluginInfo]:
    return (
        PluginInfo("backend", "fake", "Interprets a subset of the guest ISA in Python, for tests", FakeConfig, probe),
        PluginInfo("binding", "fake/x86_64", "x86-64 for the fake backend: long mode, integer instructions"),
    )


@hookimpl
def rift_binding(backend: str, isa: str) -> Binding | None:
    if (backend, isa) != ("fake", "x86_64"):
        return None
    from rift_core.testing.fake_x86_64 import X86_64

    return Binding(backend, isa, implementation=X86_64())


@hookimpl
def rift_create_vm(config: Section, spec: VmSpec) -> FakeVm:
    return FakeVm(spec)
