"""Code in user mode tries to get out: every attempt ends as a fault, as an error number, or leads nowhere."""

from __future__ import annotations

import ctypes
import io
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from machine_code import ISA

from rift_core import (
    Exit,
    ExitHandler,
    ExitKind,
    Fault,
    GuestExitError,
    GuestFaultError,
    LimitError,
    Machine,
    Permission,
    Resume,
    open_machine,
)
from rift_core.dispatch import Dispatcher
from rift_core.testing.tools import only_where, require_machine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = only_where(ISA == "x86_64", "the attempts are x86-64 machine code")

SOON = 1.0
RETURN_42 = bytes.fromhex("b82a000000c3")  # mov eax, 42; ret
ENOSYS, EFAULT = -38, -14

FORBIDDEN = {
    "out imm8": "b001e680",  # mov al, 1; out 0x80, al
    "out dx": "66baf803b041ee",  # mov dx, 0x3f8; mov al, 'A'; out dx, al
    "out 32 bits": "66baf400ef",  # mov dx, 0xf4; out dx, eax
    "in imm8": "e460",  # in al, 0x60
    "in 32 bits": "66baf803ed",  # mov dx, 0x3f8; in eax, dx
    "rep outsb": "66baf8034889e6b904000000f36e",  # mov dx, 0x3f8; mov rsi, rsp; mov ecx, 4; rep outsb
    "rep insb": "66baf803488d7c24c0b904000000f36c",  # mov dx, 0x3f8; lea rdi, [rsp-64]; mov ecx, 4; rep insb
    "cli": "fa",
    "sti": "fb",
    "hlt": "f4",
    "rdmsr": "b9800000c00f32",  # mov ecx, 0xc0000080; rdmsr
    "wrmsr": "b9820000c031c031d20f30",  # mov ecx, 0xc0000082; xor eax, eax; xor edx, edx; wrmsr
    "mov rax, cr3": "0f20d8",
    "mov cr3, rax": "31c00f22d8",
    "mov cr0, rax": "b8110000000f22c0",
    "mov cr4, rax": "31c00f22e0",
    "mov cr8, rax": "31c0440f22c0",
    "mov dr7, rax": "b8010400000f23f8",
    "lgdt": "0f015424e0",  # lgdt [rsp-32]
    "lidt": "0f015c24e0",
    "lldt": "66b828000f00d0",
    "ltr": "66b828000f00d8",
    "lmsw": "31c00f01f0",
    "clts": "0f06",
    "invlpg": "0f013c24",
    "invd": "0f08",
    "wbinvd": "0f09",
    "swapgs": "0f01f8",
    "sysret": "488b0c24480f07",  # mov rcx, [rsp]; sysretq
    "rdpmc": "31c90f33",
    "xsetbv": "31c9b80100000031d20f01d1",
    # mov rax, rsp; push 0x10; push rax; push 2; push 8; lea rax, [rip+2]; push rax; iretq
    "iretq to ring 0": "4889e06a10506a026a08488d05020000005048cf90",
    "far return to ring 0": "488d0504000000 6a08 50 48cb90",  # lea rax, [rip+4]; push 8; push rax; retfq
    "mov ss, kernel data": "b8100000008ed0",
    "mov ds, kernel data": "b8100000008ed8",
    "mov gs, local": "b8070000008ee8",
    "sysenter": "0f34",
    "int 0x80": "cd80",
    "int 14": "cd0e",
    "int 8": "cd08",
    "int 2": "cd02",
    "int3": "cc",
    "icebp": "f1",
    "ud2": "0f0b",
    "trap flag": "9c48810c24000100009d9090",  # pushfq; or qword [rsp], 0x100; popfq
    "divide by zero": "31c9f7f1",
    "vmrun": "31c00f01d8",
    "vmload": "0f01da",
    "vmxoff": "0f01c4",
    "rsm": "0faa",
    "read null": "488b042500000000",
    "write null": "4889042500000000",
    "jump null": "31c0ffe0",
    "non-canonical read": "48b80000000000800000488b00",
    "non-canonical jump": "48b80000000000000080ffe0",
    "upper half": "48c7c000f0ffff488b00",  # mov rax, -4096; mov rax, [rax]
    "push with no stack": "31e450",  # xor esp, esp; push rax
    "push on a non-canonical stack": "48bc001000000000008050",
    "a fault without a stack": "31e40f0b",  # xor esp, esp; ud2
}
"""Machine code that must end as a fault in user mode."""

HARMLESS = {
    # What these do, they do to the caller alone; not every CPU and hypervisor has them.
    "wrfsbase": "48c7c000f0ffff f3480faed0",  # mov rax, -4096; wrfsbase rax
    "wrgsbase": "48c7c000f0ffff f3480faed8",
    "mov fs, task": "b8280000008ee0",
    "vmcall": "0f01c1",
    "vmmcall": "0f01d9",
    "sidt": "0f014c24e0",
    "sgdt": "0f014424e0",
    "str": "0f00c8",
    "smsw": "0f01e0",
    "cpuid": "31c00fa2",
    "rdtsc": "0f31",
}
"""Machine code that may run through to its end or be a fault."""

PROBES = {
    "load": bytes.fromhex("488b07c3"),  # mov rax, [rdi]; ret
    "store": bytes.fromhex("488937c3"),  # mov [rdi], rsi; ret
    "jump": bytes.fromhex("ffe7"),  # jmp rdi
    # (number, a0, a1, a2, a3): mov rax, rdi; mov rdi, rsi; mov rsi, rdx; mov rdx, rcx; mov r10, r8; syscall; ret
    "syscall": bytes.fromhex("4889f84889f74889d64889ca4d89c20f05c3"),
    "syscall_loop": bytes.fromhex("31c048ffc80f05ebf7"),  # again: xor eax, eax; dec rax; syscall; jmp again
    # (entry, rcx, rax): mov rcx, rsi; mov rax, rdx; jmp rdi
    "enter": bytes.fromhex("4889f14889d0ffe7"),
    # every data segment changed, then a system call: mov eax, 0x2b; mov fs, eax; xor eax, eax; mov ds, es, gs, eax; ...
    "segments": bytes.fromhex("b81b0000008ee031c08ed88ec08ee848c7c0ffffffff0f05c3"),
    # (rsp, number): mov r12, rsp; mov rsp, rdi; mov rax, rsi; syscall; mov rsp, r12; ret
    "syscall_on": bytes.fromhex("4989e4 4889fc 4889f0 0f05 4c89e4 c3"),
    # NT, DF, AC set; a system call; what is left of them in RAX
    "flags": bytes.fromhex("9c48810c24004404009d48c7c0ffffffff0f059c582500440400fcc3"),
    "add": bytes.fromhex("488d0437c3"),
    "spin": bytes.fromhex("ebfe"),
}

HOST_ONLY = (ExitKind.PORT_IO, ExitKind.HALT, ExitKind.SYSTEM_REGISTER, ExitKind.HYPERCALL, ExitKind.SHUTDOWN)


class Cage:
    """A machine whose threads run in user mode, and what of it has reached the host's handlers."""

    def __init__(self, code: bytes, **options: Any) -> None:
        self.console = io.BytesIO()
        handlers = ["exit", "console", "uart16550", "debug-exit"]
        options.setdefault("exit_handlers", handlers)
        self.machine: Machine = require_machine(
            lambda: open_machine(
                code=code,
                isa="x86_64",
                console=self.console,
                threads=[{"name": "main", "privilege": "user"}],
                **options,
            )
        )
        self.seen: list[Exit] = []
        for kind in HOST_ONLY:
            self.machine.dispatcher.observe(kind, lambda vcpu, exit: self.seen.append(exit))
        self.machine.dispatcher.observe(ExitKind.MMIO, lambda vcpu, exit: self.seen.append(exit))
        self.code = {name: self.machine.load_code(text) for name, text in PROBES.items()}
        self.still_works()  # the first call adds pages of its own

    def call(self, name: str, *arguments: int, timeout: float = 20) -> int:
        result: int = self.machine.call(self.code[name], *arguments, timeout=timeout, restype=ctypes.c_int64)
        return result

    def still_works(self) -> None:
        assert self.call("add", 20, 22) == 42

    def supervisor_pages(self) -> dict[str, tuple[int, int]]:
        """Start and end of everything that is mapped, but not for user mode."""
        plan = self.machine.engine.plan
        return {m.name: (m.virtual, m.end) for m in plan.mappings if not m.permissions & Permission.USER}

    def supervisor_bytes(self) -> bytes:
        """The code and descriptor tables of ring 0, and the page tables without accessed and dirty bits."""
        plan, memory = self.machine.engine.plan, self.machine.memory
        parts = [
            bytes(memory[area.physical : area.physical + area.size])
            for key, area in plan.areas.items()
            if key.endswith(("/code", "/descriptor-tables"))
        ]
        tables = memory[plan.tables.physical : plan.tables.physical + plan.tables.size].cast("Q")
        return b"".join(parts) + b"".join((word & ~0x60).to_bytes(8, "little") for word in tables if word)


@pytest.fixture
def make_cage() -> Iterator[Callable[..., Cage]]:
    made: list[Cage] = []

    def make(code: bytes = RETURN_42, **options: Any) -> Cage:
        made.append(Cage(code, **options))
        return made[-1]

    yield make
    for each in made:
        each.machine.close()


@pytest.fixture
def cage(make_cage: Callable[..., Cage]) -> Cage:
    return make_cage()


@pytest.mark.parametrize("name", FORBIDDEN)
def test_what_only_a_kernel_may_do_is_a_fault_in_user_mode(make_cage: Callable[..., Cage], name: str) -> None:
    cage = make_cage(bytes.fromhex(FORBIDDEN[name]) + RETURN_42)
    with pytest.raises(GuestFaultError, match="in user mode") as caught:
        cage.machine.thread("main").start().join(timeout=20)
    assert caught.value.report.fault.user
    assert cage.seen == []
    cage.still_works()


@pytest.mark.parametrize("name", HARMLESS)
def test_what_changes_the_caller_alone_may_run(make_cage: Callable[..., Cage], name: str) -> None:
    cage = make_cage(bytes.fromhex(HARMLESS[name]) + RETURN_42, limits={"wall_time": 10.0})
    thread = cage.machine.thread("main").start()
    fault = None
    try:
        assert thread.join(timeout=20).status == 42
    except GuestFaultError as error:
        fault = error.report.fault
    assert fault is None or fault.user
    assert cage.seen == []
    cage.still_works()


def test_nothing_of_the_supervisors_can_be_read_written_or_executed(cage: Cage) -> None:
    pages = cage.supervisor_pages()
    wanted = {"system/code", "main/descriptor-tables", "main/kernel-stack", "main/nmi-stack", "tables", "doorbell"}
    assert wanted <= pages.keys()
    before = cage.supervisor_bytes()
    for start, end in pages.values():
        for address in (start, end - 8):
            for probe in ("load", "store", "jump"):
                with pytest.raises(GuestFaultError, match=r"#PF page fault .* in user mode") as caught:
                    cage.call(probe, address, -1)
                assert "not allowed by the page's permissions" in str(caught.value)
    assert cage.seen == []
    assert cage.supervisor_bytes() == before
    cage.still_works()


def test_unaligned_accesses_across_the_edge_do_not_help(cage: Cage) -> None:
    for start, end in cage.supervisor_pages().values():
        for address in (start - 4, end - 4):
            for probe in ("load", "store"):
                with pytest.raises(GuestFaultError, match="#PF"):
                    cage.call(probe, address, -1)
    assert cage.seen == []


@pytest.mark.parametrize("number", [5, 15, 1000, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])
def test_system_calls_that_nobody_serves_give_enosys(cage: Cage, number: int) -> None:
    assert cage.call("syscall", number, 1, 2, 3, 4) == ENOSYS
    cage.still_works()


@pytest.mark.parametrize("offset", [0x800, 0x808, 0x810, 0xFF8, 0x1000, 1 << 32, 1 << 63, (1 << 64) - 8])
def test_the_isas_registers_of_the_doorbell_cannot_be_forged(cage: Cage, offset: int) -> None:
    assert cage.call("syscall", 3, offset, 7) == ENOSYS
    assert cage.call("syscall", 4, offset, 7) == ENOSYS
    assert cage.seen == []
    cage.still_works()


def test_console_calls_with_hostile_pointers_show_nothing_of_the_supervisors(cage: Cage) -> None:
    pages = cage.supervisor_pages()
    hostile = [address for span in pages.values() for address in (span[0], span[1] - 1)]
    hostile += [0, 1, 0x7FFF_FFFF_F000, 1 << 47, 1 << 63, (1 << 64) - 1, (1 << 64) - 4096]
    for pointer in hostile:
        for length in (1, 8, 4096, 1 << 32, (1 << 64) - 1):
            assert cage.call("syscall", 1, pointer, length) == EFAULT, hex(pointer)
    assert cage.console.getvalue() == b""
    assert cage.call("syscall", 1, (1 << 64) - 1, 0) == 0


def test_a_console_call_that_runs_into_the_supervisors_pages_ends_there(cage: Cage) -> None:
    code = cage.machine.engine.plan.areas["system/user-code"]
    end = code.virtual + code.size
    assert cage.call("syscall", 1, end - 16, 1 << 40) == 16
    assert cage.console.getvalue() == bytes(cage.machine.view(end - 16, 16))


def test_handlers_read_and_write_what_user_mode_may(cage: Cage) -> None:
    view = cage.machine.engine
    code = cage.code["add"]
    assert view.read_user(code, 4) == PROBES["add"][:4]
    physical = cage.machine.map(0x5000_0000, 0x1000, "rwu")
    view.write_user(0x5000_0000, b"mine")
    assert bytes(cage.machine.memory[physical : physical + 4]) == b"mine"
    for address, _ in cage.supervisor_pages().values():
        with pytest.raises(Exception, match="is mapped"):
            view.read_user(address, 1)
    with pytest.raises(Exception, match="is mapped"):
        view.write_user(code, b"\xcc")  # readable, but not writable
    with pytest.raises(Exception, match="not mapped"):
        view.write_user(0x5000_0FFC, b"over the edge")
    assert bytes(cage.machine.memory[physical + 0xFFC : physical + 0x1000]) == bytes(4)


def test_jumping_into_the_companion_is_no_more_than_a_system_call(cage: Cage) -> None:
    """Its entry is the one supervisor address that user mode can go to, by SYSCALL."""
    cage.machine.thread("main").start().join(timeout=20)
    entry = cage.machine.thread("main").registers["lstar"]
    before = cage.supervisor_bytes()
    back = cage.code["add"]
    faults = []
    for target in (entry, entry - 0x40, entry - 0x20, entry + 10, entry + 1):
        for back_to in (0, back, entry - 8, 1 << 47, (1 << 47) - 2, 1 << 63, (1 << 64) - 1):
            try:
                cage.call("enter", target, back_to, 1 << 40)
            except GuestFaultError as error:
                faults.append(error.report.fault)
    assert all(fault.user for fault in faults)
    with pytest.raises(TimeoutError):  # it goes round by itself, and is ended like any other loop
        cage.call("enter", entry, entry, 1 << 40, timeout=0.2)
    assert cage.seen == []
    assert cage.supervisor_bytes() == before
    cage.still_works()


def test_segments_flags_and_stack_pointers_do_not_disturb_the_companion(cage: Cage) -> None:
    assert cage.call("segments") == ENOSYS
    cage.call("flags")
    before = cage.supervisor_bytes()
    pointers = [end for _, end in cage.supervisor_pages().values()]
    for pointer in (0, 8, 1 << 47, 1 << 63, (1 << 64) - 8, *pointers):
        assert cage.call("syscall_on", pointer, 1 << 40) == ENOSYS, hex(pointer)
        cage.still_works()
    assert cage.supervisor_bytes() == before


def test_a_fault_as_the_answer_of_a_handler_is_an_error_number(cage: Cage) -> None:
    """Delivered as an exception it would use the stack pointer that user mode has chosen, in ring 0."""
    kinds = frozenset({ExitKind.USER_CALL})
    fails = ExitHandler("fails", kinds, range(77, 78), lambda vcpu, exit: Fault(13))
    mmio = ExitHandler("mmio", frozenset({ExitKind.MMIO}), range(0x7000_0100, 0x7000_0108), lambda v, e: Fault(13))
    cage.machine.engine.dispatcher = Dispatcher([fails, mmio])
    assert cage.call("syscall", 77) == EFAULT
    assert cage.call("syscall", 3, 0x100, 5) == EFAULT
    tables = cage.machine.engine.plan.tables
    before = cage.supervisor_bytes()
    cage.call("syscall_on", tables.virtual + 0x100, 77)
    assert cage.supervisor_bytes() == before
    cage.still_works()


def test_loops_of_system_calls_are_ended_by_limits(make_cage: Callable[..., Cage]) -> None:
    cage = make_cage(PROBES["syscall_loop"], limits={"exits_per_second": 20})
    began = time.monotonic()
    with pytest.raises(LimitError, match="exits_per_second"):
        cage.machine.thread("main").start().join(timeout=20)
    assert time.monotonic() - began < 0.5 + SOON
    cage = make_cage(PROBES["syscall_loop"], limits={"wall_time": 0.2})
    began = time.monotonic()
    with pytest.raises(LimitError, match="wall_time"):
        cage.machine.thread("main").start().join(timeout=20)
    assert time.monotonic() - began < 0.2 + SOON


@pytest.mark.parametrize("probe", ["spin", "syscall_loop"])
def test_kill_ends_whatever_user_mode_does(cage: Cage, probe: str) -> None:
    timer = threading.Timer(0.1, cage.machine.kill)
    timer.start()
    began = time.monotonic()
    with pytest.raises(GuestExitError, match="killed"):
        cage.call(probe)
    assert time.monotonic() - began < 0.1 + SOON
    timer.join()
    cage.still_works()


def test_a_thousand_faults_leave_nothing(cage: Cage) -> None:
    supervisor = next(iter(cage.supervisor_pages().values()))[0]
    vcpus = len(cage.machine.engine.contexts)
    for _ in range(1000):
        with pytest.raises(GuestFaultError):
            cage.call("load", supervisor)
    cage.still_works()
    assert len(cage.machine.engine.contexts) <= vcpus + 1


def test_a_doorbell_for_user_mode_has_only_what_handlers_serve(cage: Cage) -> None:
    answers: list[Exit] = []

    def serve(vcpu: object, exit: Exit) -> Resume:
        answers.append(exit)
        return Resume(99)

    handler = ExitHandler("mine", frozenset({ExitKind.MMIO}), range(0x7000_0100, 0x7000_0108), serve)
    cage.machine.engine.dispatcher = Dispatcher([handler])
    assert cage.call("syscall", 4, 0x100) == 99
    assert cage.call("syscall", 3, 0x100, 5) == 99
    assert [(e.is_write, e.value) for e in answers] == [(False, 0), (True, 5)]
    assert cage.call("syscall", 4, 0x108) == ENOSYS
    assert cage.call("syscall", 3, 0, 5) == ENOSYS  # `exit` is not among the handlers now
