"""From an exit that nobody answers to what it means for the debugger, on the guest thread's own host thread."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rift_core.errors import AddressError
from rift_core.exits import ExitKind
from rift_core.report import describe_address, describe_walk
from rift_gdb.breakpoints import NOTHING
from rift_gdb.stops import SIGNALS, SIGSEGV, SIGTRAP, StopEvent, crash_signal

if TYPE_CHECKING:
    from collections.abc import Callable

    from rift_core.errors import RiftError
    from rift_core.exits import Exit
    from rift_core.isa import GuestFault
    from rift_gdb.breakpoints import Arrangement, Breakpoints, Watch
    from rift_gdb.guest_side import GuestSide
    from rift_gdb.guest_thread import GuestThread

_STEP, _SOFTWARE, _HARDWARE, _WATCHPOINT = 1, 2, 3, 4  # info[0] of a DEBUG exit: rift_abi.h


class Events:
    """What guest threads come upon, told apart."""

    def __init__(self, target: GuestSide) -> None:
        self._target = target
        self._arranged = NOTHING
        self._watches: tuple[Watch, ...] = ()
        self._software: frozenset[int] = frozenset()
        self._compared: list[tuple[Watch, tuple[memoryview, ...]]] = []
        self._before: dict[Watch, bytes] = {}

    def remember(self, arranged: Arrangement, breakpoints: Breakpoints) -> None:
        """What is in place from now on, and what watched memory holds. The server's thread, all being stopped."""
        self._arranged = arranged
        self._watches = breakpoints.watches
        self._software = breakpoints.software
        self._compared = []
        for watch in arranged.compared:
            try:
                pieces = tuple(p.host for p in breakpoints.view_of(watch).pieces(watch.address, watch.size))
            except AddressError:
                continue  # not mapped any more: nothing is written there
            self._compared.append((watch, pieces))
            self._before[watch] = _content(pieces)

    def classify(
        self, thread: GuestThread, exit: Exit, fault: GuestFault | None, describe: Callable[[], RiftError]
    ) -> StopEvent | None:
        """A stop for the client; None: the guest goes on, the vCPU being set up for it."""
        debug = self._target.debug
        vcpu = thread.context.vcpu
        if vcpu is None:
            return None
        if exit.kind is ExitKind.DEBUG:
            return self._debug_event(thread, exit.info[0], exit.address, exit.info[1])
        if exit.kind is ExitKind.FAIL_ENTRY and _begins_with(exit, debug.breakpoint):
            return self._at_instruction(thread, exit.address)
        if fault is None:
            return StopEvent("fault", crash_signal(exit), exit.address, text=str(describe()).partition("\n")[0])
        happened = debug.debug_event(fault, vcpu)
        debug.undo_fault(fault, vcpu)
        if thread.late or (happened is not None and happened.kind == "step"):
            thread.trapped()
        if happened is None and self._fetch_stops(thread, fault):
            return self._breakpoint(fault.pc)
        if happened is None:
            signal = SIGNALS.get(debug.signal(fault), SIGSEGV)
            return StopEvent("fault", signal, fault.pc, text=self._describe_fault(fault))
        if happened.pc != fault.pc:
            vcpu.write_registers({self._target.engine.isa.program_counter: happened.pc})
        kinds = {"step": _STEP, "software": _SOFTWARE, "hardware": _HARDWARE, "watchpoint": _WATCHPOINT}
        return self._debug_event(thread, kinds[happened.kind], happened.pc, happened.address)

    def _fetch_stops(self, thread: GuestThread, fault: GuestFault) -> bool:
        """Whether a breakpoint comes before the fault: there is one at an instruction that cannot be fetched, such as
        GDB sets on the stack, where functions return to that it has called. Stepping off it is the fault."""
        return fault.address == fault.pc != thread.left and fault.pc in self._target.breakpoints

    def _debug_event(self, thread: GuestThread, what: int, pc: int, address: int) -> StopEvent | None:
        if what == _STEP:
            return self._stepped(thread, pc)
        if what == _SOFTWARE:
            return self._at_instruction(thread, pc)
        if what == _WATCHPOINT:
            watch = next((w for w in self._watches if w.covers(address)), None)
            if watch is not None:
                inside = min(max(address, watch.address), watch.address + watch.size - 1)
                return StopEvent("watch", SIGTRAP, pc, inside, watch.access)
        elif pc in self._arranged.hardware:
            return self._breakpoint(pc)
        if thread.strange == (what, pc):
            return StopEvent("trap", SIGTRAP, pc, text="a debug exception that nobody has asked for")
        thread.arm(self._arranged)  # it has been taken back meanwhile
        thread.strange = (what, pc)
        return None

    def _stepped(self, thread: GuestThread, pc: int) -> StopEvent | None:
        plan = thread.plan
        if self._compared:
            for watch, pieces in self._compared:
                now = _content(pieces)
                if now != self._before[watch]:
                    self._before[watch] = now
                    return StopEvent("watch", SIGTRAP, pc, watch.address, "write")
        vcpu = thread.context.vcpu
        if vcpu is not None and thread.exception_stack is None and self.begins_exception(pc):
            self._target.debug.forget_step(vcpu, self._target.engine, thread.start)
        if plan.kind == "go" and not (self._arranged.compared and self._target.attended):
            thread.calm()  # a step that was given up while its exception was on its way
            return self._breakpoint(pc) if pc in self._arranged.hardware else None
        if plan.kind == "over":
            return StopEvent("over", SIGTRAP, pc)
        if self._inside_exception(thread, pc):
            thread.rearm(self._arranged)
            return None
        if plan.kind == "step" or (plan.kind == "range" and not plan.first <= pc < plan.last):
            return StopEvent("step", SIGTRAP, pc)
        if pc in self._arranged.hardware:
            return self._breakpoint(pc)
        thread.rearm(self._arranged)
        return None

    def begins_exception(self, pc: int) -> bool:
        """Whether a step has led to where exceptions are taken."""
        target = self._target
        return pc in target.vectors or any(a.virtual <= pc < a.end for a in target.engine.system.areas.values())

    def _inside_exception(self, thread: GuestThread, pc: int) -> bool:
        """Whether a step has taken an exception that is not over yet: it is stepped over, to the report of a fault, or
        until the guest has dealt with it and goes on. Code behind a vector is stopped by breakpoints."""
        target = self._target
        if any(area.virtual <= pc < area.end for area in target.engine.system.areas.values()):
            return True  # Rift's own: on the way from a fault to its report, from a user call to its answer
        in_vectors = pc in target.vectors
        vcpu = thread.context.vcpu
        if vcpu is None or (thread.exception_stack is None and not in_vectors):
            return False
        stack = target.debug.place(vcpu).sp
        if thread.exception_stack is None:
            thread.exception_stack = stack
        if in_vectors or stack < thread.exception_stack or self._is(pc, target.debug.exception_return):
            return True
        thread.exception_stack = None
        return pc == thread.start  # the instruction is tried once more

    def _is(self, pc: int, instruction: bytes) -> bool:
        """Whether it stands there."""
        try:
            return self._target.view(None).read(pc, len(instruction)) == instruction
        except AddressError:
            return False

    def _breakpoint(self, pc: int) -> StopEvent:
        """Told as the kind that the client has asked for, by whatever means it was carried out."""
        return StopEvent("breakpoint" if pc in self._software else "hardware", SIGTRAP, pc)

    def _at_instruction(self, thread: GuestThread, pc: int) -> StopEvent | None:
        """A breakpoint instruction was reached: one of ours, one that was ours a moment ago, or the program's."""
        if pc in self._arranged.patched:
            return self._breakpoint(pc)
        target = self._target
        behind = target.debug.own_breakpoint(target.engine, pc)
        if behind is None:
            return None
        vcpu = thread.context.vcpu
        if behind != pc and vcpu is not None:
            vcpu.write_registers({target.engine.isa.program_counter: behind})
        return StopEvent("trap", SIGTRAP, behind)

    def _describe_fault(self, fault: GuestFault) -> str:
        engine = self._target.engine
        text = f"{fault.name} at {describe_address(engine.symbols, fault.pc)}"
        if fault.words:
            text += f": {fault.words}"
        if fault.address is not None:
            text += f"; {fault.address:#x} is {describe_walk(engine.translate(fault.address))}"
        return text


def _content(pieces: tuple[memoryview, ...]) -> bytes:
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(bytes(piece) for piece in pieces)


def _begins_with(exit: Exit, instruction: bytes) -> bool:
    if exit.size < len(instruction):
        return False
    return b"".join(word.to_bytes(8, "little") for word in exit.info).startswith(instruction)
