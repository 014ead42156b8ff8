"""Machine-code fragments for x86-64 in 64-bit mode: see :mod:`rift_core.testing.guests`. Intel SDM volume 2."""

from __future__ import annotations

import struct
from types import MappingProxyType

from rift_core.testing.guests import DONE, Guests


def _immediate(opcode: int, value: int) -> bytes:
    return bytes((0x48, opcode)) + struct.pack("<Q", value & (1 << 64) - 1)


def _rax(value: int) -> bytes:
    return _immediate(0xB8, value)  # mov rax, imm64


def _rbx(value: int) -> bytes:
    return _immediate(0xBB, value)  # mov rbx, imm64


def _call_registers(arguments: tuple[int, ...]) -> bytes:
    """mov rdi, rsi, rdx, r10, r8, r9: the convention of Linux, which rift_user_call and rift_hypercall have too."""
    moves = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
    return b"".join(move + struct.pack("<Q", value) for move, value in zip(moves, arguments, strict=False))


class X86_64Guests(Guests):  # noqa: N801 - the architecture's name
    """Scratch registers: RAX, RBX, RCX, RDX, RSI."""

    isa = "x86_64"
    result = "rax"
    argument_registers = ("rdi", "rsi", "rdx", "rcx", "r8", "r9")
    crash_registers = MappingProxyType({"idtr.limit": 0})  # no exception can be delivered
    invalid_vector = 6
    page_fault_vectors = frozenset({14})
    stack_fault_vector = 8  # the page fault cannot be delivered there: a double fault, on a stack of its own
    injected = (13, 0x28)
    system_register = 0x5249_4654
    has_ports = True

    def store(self, address: int, size: int, value: int) -> bytes:
        move = {1: b"\x88\x03", 2: b"\x66\x89\x03", 4: b"\x89\x03", 8: b"\x48\x89\x03"}[size]  # mov [rbx], rax
        return _rbx(address) + _rax(value) + move

    def store_result(self, address: int) -> bytes:
        return _rbx(address) + b"\x48\x89\x03"

    def load(self, address: int, size: int) -> bytes:
        move = {1: b"\x0f\xb6\x03", 2: b"\x0f\xb7\x03", 4: b"\x8b\x03", 8: b"\x48\x8b\x03"}[size]  # mov(zx) rax, [rbx]
        return _rbx(address) + move

    def copy(self, source: int, target: int) -> bytes:
        return self.load(source, 8) + self.store_result(target)

    def forever(self, body: bytes) -> bytes:
        return body + b"\xe9" + struct.pack("<i", -(len(body) + 5))  # jmp body

    def add(self, address: int, times: int) -> bytes:
        # mov ecx, times; again: lock inc qword [rbx]; dec ecx; jnz again
        return _rbx(address) + b"\xb9" + struct.pack("<I", times) + b"\xf0\x48\xff\x03\xff\xc9\x75\xf8"

    def wait_for(self, address: int, value: int) -> bytes:
        # again: cmp dword [rbx], value; jne again
        return _rbx(address) + b"\x81\x3b" + struct.pack("<I", value) + b"\x75\xf8"

    def spin(self) -> bytes:
        return b"\xeb\xfe"

    def halt(self) -> bytes:
        return b"\xf4"

    def invalid(self) -> bytes:
        return b"\x0f\x0b"  # ud2

    def privileged(self) -> bytes:
        return b"\x0f\x20\xd8\x0f\x22\xd8"  # mov rax, cr3; mov cr3, rax

    def jump(self, address: int) -> bytes:
        return _rax(address) + b"\xff\xe0"  # jmp rax

    def use_stack(self, address: int) -> bytes:
        return _immediate(0xBC, address) + b"\x50"  # mov rsp, imm64; push rax

    def nop(self) -> bytes:
        return b"\x90"

    def breakpoint(self) -> bytes:
        return b"\xcc"  # int3

    def hypercall(self, number: int, arguments: tuple[int, ...]) -> bytes:
        return _call_registers(arguments) + _rax(number) + b"\x0f\x01\xc1"  # vmcall

    def read_system_register(self, number: int) -> bytes:
        # mov ecx, number; rdmsr; shl rdx, 32; mov eax, eax; or rax, rdx
        return b"\xb9" + struct.pack("<I", number) + bytes.fromhex("0f32 48c1e220 89c0 4809d0")

    def write_system_register(self, number: int, value: int) -> bytes:
        # mov rax, value; mov rdx, rax; shr rdx, 32; mov ecx, number; wrmsr
        return _rax(value) + bytes.fromhex("4889c2 48c1ea20") + b"\xb9" + struct.pack("<I", number) + b"\x0f\x30"

    def user_call(self, number: int, arguments: tuple[int, ...]) -> bytes:
        return _call_registers(arguments) + _rax(number) + b"\x0f\x05"  # syscall

    def port_read(self, port: int, size: int) -> bytes:
        read = {1: b"\xec", 2: b"\x66\xed", 4: b"\xed"}[size]  # xor eax, eax; mov edx, port; in al/ax/eax, dx
        return b"\x31\xc0\xba" + struct.pack("<I", port) + read

    def port_write(self, port: int, size: int, value: int) -> bytes:
        write = {1: b"\xee", 2: b"\x66\xef", 4: b"\xef"}[size]
        return b"\xb8" + struct.pack("<I", value) + b"\xba" + struct.pack("<I", port) + write

    def port_write_string(self, port: int, address: int, count: int) -> bytes:
        # mov rsi, address; mov ecx, count; mov edx, port; cld; rep outsb
        return (
            _immediate(0xBE, address)
            + b"\xb9" + struct.pack("<I", count)
            + b"\xba" + struct.pack("<I", port)
            + b"\xfc\xf3\x6e"
        )  # fmt: skip

    def add_function(self) -> bytes:
        return b"\x48\x8d\x04\x37\xc3"  # lea rax, [rdi + rsi]; ret

    def end(self) -> bytes:
        return self.forever(self.store(DONE, 4, 0))
