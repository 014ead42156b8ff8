"""x86-64 for the fake backend: integer instructions. Intel SDM volume 2, appendix A (opcode maps)."""

from __future__ import annotations

from rift_core.testing.fake_x86_64_access import MASK64, GuestException
from rift_core.testing.fake_x86_64_decode import (
    AF,
    ARITHMETIC_FLAGS,
    CF,
    OF,
    ZF,
    Decoder,
    add,
    extend,
    mask,
    result_flags,
    subtract,
)
from rift_core.testing.fake_x86_64_delivery import DF, UNDEFINED

_DIVIDE_ERROR, _BREAKPOINT = 0, 3
_PUSHED_FLAGS = ~0x3_0000  # RF and VM read as 0


class Integer(Decoder):
    """Instructions that any privilege level may use. Each method returns False for an opcode it does not know."""

    def integer(self, op: int) -> bool:
        """One-byte opcodes."""
        size = self.operand if op & 1 else 1
        if op < 0x40 and op & 7 < 6:
            self._alu(op, size)
        elif op & 0xF8 == 0x50:
            self.push(self.get(op & 7 | (self.rex & 1) << 3, 8))
        elif op & 0xF8 == 0x58:
            self.set(op & 7 | (self.rex & 1) << 3, 8, self.pop())
        elif op == 0x63:
            self.modrm()
            self.set(self.reg, self.operand, extend(self.get_rm(4), 4))
        elif op in (0x68, 0x6A):
            self.push(self.signed(4 if op == 0x68 else 1))
        elif op in (0x69, 0x6B):
            self._multiply_immediate(op)
        elif op & 0xF0 == 0x70:
            target = self.signed(1)
            if self.condition(op & 15):
                self.jump(self.next + target)
        elif op in (0x80, 0x81, 0x83):
            self._alu_immediate(op, size)
        elif op in (0x84, 0x85):
            self.modrm()
            self._test(self.get_rm(size), self.get(self.reg, size), size)
        elif op in (0x86, 0x87):
            self._exchange(size)
        elif op in (0x88, 0x89):
            self.modrm()
            self.set_rm(size, self.get(self.reg, size))
        elif op in (0x8A, 0x8B):
            self.modrm()
            self.set(self.reg, size, self.get_rm(size))
        elif op == 0x8D:
            self.modrm()
            if self.rm is not None:
                raise GuestException(UNDEFINED)
            self.set(self.reg, self.operand, self.address)
        elif op == 0x8F:
            self._pop_rm()
        elif op & 0xF8 == 0x90:
            number = op & 7 | (self.rex & 1) << 3  # 0x90 itself is NOP, F3 90 PAUSE: RAX with RAX
            if number:
                one, other = self.get(0, self.operand), self.get(number, self.operand)
                self.set(0, self.operand, other)
                self.set(number, self.operand, one)
        elif op == 0x98:
            self.set(0, self.operand, extend(self.get(0, self.operand // 2), self.operand // 2))
        elif op == 0x99:
            self.set(2, self.operand, -(self.get(0, self.operand) >> 8 * self.operand - 1))
        elif op == 0x9C:
            self.push(self.state["rflags"] & _PUSHED_FLAGS)
        elif op == 0x9D:
            self.state["rflags"] = self.allowed_flags(self.pop())
        elif 0xA0 <= op <= 0xA3:
            self.address = self.immediate(4 if self.address32 else 8)
            if op < 0xA2:
                self.set(0, size, self.read(self.linear(), size))
            else:
                self.write(self.linear(), size, self.get(0, size))
        elif 0xA4 <= op <= 0xA7 or 0xAA <= op <= 0xAF:
            self._string(op, size)
        elif op in (0xA8, 0xA9):
            self._test(self.get(0, size), self.immediate(1) if op == 0xA8 else self.operand_immediate(), size)
        elif op & 0xF8 == 0xB0:
            self.set(op & 7 | (self.rex & 1) << 3, 1, self.immediate(1))
        elif op & 0xF8 == 0xB8:
            self.set(op & 7 | (self.rex & 1) << 3, self.operand, self.immediate(self.operand))
        elif op in (0xC0, 0xC1, 0xD0, 0xD1, 0xD2, 0xD3):
            self._shift(op, size)
        elif op in (0xC2, 0xC3):
            extra = self.immediate(2) if op == 0xC2 else 0
            target = self.pop()
            self.state["rsp"] = self.state["rsp"] + extra & MASK64
            self.jump(target)
        elif op in (0xC6, 0xC7):
            self.modrm(min(size, 4))
            if self.reg & 7:
                raise GuestException(UNDEFINED)
            self.set_rm(size, self.signed(min(size, 4)))
        elif op == 0xC9:
            frame = self.state["rbp"]
            value = self.read(frame, 8)
            self.state["rsp"], self.state["rbp"] = frame + 8 & MASK64, value
        elif op == 0xE8:
            offset = self.signed(4)
            target = self.next + offset
            self.push(self.next)
            self.jump(target)
        elif op in (0xE9, 0xEB):
            offset = self.signed(4 if op == 0xE9 else 1)
            self.jump(self.next + offset)
        elif op in (0xF6, 0xF7):
            self._group3(size)
        elif op in (0xF5, 0xF8, 0xF9):
            flags = self.state["rflags"]
            self.set_flags(flags ^ CF if op == 0xF5 else op & 1, CF)
        elif op in (0xFC, 0xFD):
            self.set_flags(DF if op == 0xFD else 0, DF)
        elif op in (0xFE, 0xFF):
            self._group5(op, size)
        else:
            return False
        return True

    def extended(self, op: int) -> bool:
        """Opcodes behind 0F."""
        size = self.operand
        if op & 0xF0 == 0x40:
            self.modrm()
            value = self.get_rm(size)
            self.set(self.reg, size, value if self.condition(op & 15) else self.get(self.reg, size))
        elif op & 0xF0 == 0x80:
            target = self.signed(4)
            if self.condition(op & 15):
                self.jump(self.next + target)
        elif op & 0xF0 == 0x90:
            self.modrm()
            self.set_rm(1, int(self.condition(op & 15)))
        elif op in (0xA3, 0xAB, 0xB3, 0xBB, 0xBA):
            self._bit(op)
        elif op == 0xAF:
            self.modrm()
            self._multiply(self.get(self.reg, size), self.get_rm(size))
        elif op in (0xB0, 0xB1):
            self._compare_exchange(size if op == 0xB1 else 1)
        elif op in (0xB6, 0xB7):
            self.modrm()
            self.set(self.reg, size, self.get_rm(1 if op == 0xB6 else 2))
        elif op in (0xBE, 0xBF):
            self.modrm()
            width = 1 if op == 0xBE else 2
            self.set(self.reg, size, extend(self.get_rm(width), width))
        elif op in (0xBC, 0xBD):
            self.modrm()
            value = self.get_rm(size)
            self.set_flags(ZF if value == 0 else 0, ZF)
            if value:
                found = (value & -value).bit_length() if op == 0xBC else value.bit_length()
                self.set(self.reg, size, found - 1)
        elif op in (0xC0, 0xC1):
            size = size if op == 0xC1 else 1
            self.modrm()
            old = self.get_rm(size)
            value, flags = add(old, self.get(self.reg, size), size)
            self.set_rm(size, value)
            self.set(self.reg, size, old)
            if self.rm == self.reg:
                self.set_rm(size, value)
            self.set_flags(flags)
        elif op & 0xF8 == 0xC8:
            number = op & 7 | (self.rex & 1) << 3
            self.set(number, size, int.from_bytes(self.get(number, size).to_bytes(size, "little"), "big"))
        elif op in (0x0D, 0x18, 0x1E, 0x1F):
            self.modrm()  # NOP, ENDBR64, prefetches
        elif op == 0xAE:
            self.modrm()
            if self.rm is None or self.reg & 7 < 5:
                return False  # only LFENCE, MFENCE, SFENCE
        else:
            return False
        return True

    def jump(self, target: int) -> None:
        """Where the next instruction stands."""
        self.next = target & MASK64

    # -- arithmetic ------------------------------------------------------------------------------

    def _compute(self, operation: int, a: int, b: int, size: int) -> int | None:
        """ADD OR ADC SBB AND SUB XOR CMP by number; None: nothing to store."""
        carry = self.state["rflags"] & CF
        if operation == 0:
            value, flags = add(a, b, size)
        elif operation == 2:
            value, flags = add(a, b, size, carry)
        elif operation == 3:
            value, flags = subtract(a, b, size, carry)
        elif operation in (5, 7):
            value, flags = subtract(a, b, size)
        else:
            value = a | b if operation == 1 else a & b if operation == 4 else a ^ b
            flags = result_flags(value, size)
        self._pending_flags = flags
        return None if operation == 7 else value

    def _alu(self, op: int, size: int) -> None:
        operation, form = op >> 3, op & 7
        if form >= 4:
            a, b = self.get(0, size), self.immediate(1) if form == 4 else self.operand_immediate()
            value = self._compute(operation, a, b, size)
            if value is not None:
                self.set(0, size, value)
        elif form < 2:
            self.modrm()
            value = self._compute(operation, self.get_rm(size), self.get(self.reg, size), size)
            if value is not None:
                self.set_rm(size, value)
        else:
            self.modrm()
            value = self._compute(operation, self.get(self.reg, size), self.get_rm(size), size)
            if value is not None:
                self.set(self.reg, size, value)
        self.set_flags(self._pending_flags)

    def _alu_immediate(self, op: int, size: int) -> None:
        bytes_ = min(size, 4) if op == 0x81 else 1
        self.modrm(bytes_)
        b = self.signed(bytes_) & mask(size)
        value = self._compute(self.reg & 7, self.get_rm(size), b, size)
        if value is not None:
            self.set_rm(size, value)
        self.set_flags(self._pending_flags)

    def _test(self, a: int, b: int, size: int) -> None:
        self.set_flags(result_flags(a & b, size))

    def _multiply(self, a: int, b: int) -> None:
        size = self.operand
        product = extend(a, size) * extend(b, size)
        value = product & mask(size)
        self.set(self.reg, size, value)
        self.set_flags(result_flags(value, size) | (0 if extend(value, size) == product else CF | OF))

    def _multiply_immediate(self, op: int) -> None:
        bytes_ = min(self.operand, 4) if op == 0x69 else 1
        self.modrm(bytes_)
        value = self.get_rm(self.operand)
        self._multiply(value, self.signed(bytes_) & mask(self.operand))

    def _group3(self, size: int) -> None:
        # The immediate of TEST comes after ModRM, and counts for a RIP-relative address.
        kind = self._peek() >> 3 & 7
        self.modrm(min(size, 4) if kind < 2 else 0)
        value = self.get_rm(size)
        if kind < 2:
            self._test(value, self.signed(min(size, 4)) & mask(size), size)
        elif kind == 2:
            self.set_rm(size, ~value)
        elif kind == 3:
            result, flags = subtract(0, value, size)
            self.set_rm(size, result)
            self.set_flags(flags)
        elif kind < 6:
            self._wide_multiply(value, size, signed=kind == 5)
        else:
            self._divide(value, size, signed=kind == 7)

    def _peek(self) -> int:
        byte = self.byte()
        self._window = self._window << 8 | byte
        self._ahead += 1
        self.next -= 1
        return byte

    def _wide_multiply(self, value: int, size: int, *, signed: bool) -> None:
        a = self.get(0, size)
        product = extend(a, size) * extend(value, size) if signed else a * value
        fits = extend(product & mask(size), size) == product if signed else product <= mask(size)
        if size == 1:
            self.set(0, 2, product)
        else:
            self.set(0, size, product)
            self.set(2, size, product >> 8 * size)
        self.set_flags(0 if fits else CF | OF)

    def _divide(self, divisor: int, size: int, *, signed: bool) -> None:
        if size == 1:
            dividend, width = self.get(0, 2), 2
        else:
            dividend, width = self.get(2, size) << 8 * size | self.get(0, size), 2 * size
        if signed:
            dividend, divisor = extend(dividend, width), extend(divisor, size)
        if divisor == 0:
            raise GuestException(_DIVIDE_ERROR)
        quotient = abs(dividend) // abs(divisor)
        if (dividend < 0) != (divisor < 0):
            quotient = -quotient
        rest = dividend - quotient * divisor
        low, high = (-(1 << 8 * size - 1), (1 << 8 * size - 1) - 1) if signed else (0, mask(size))
        if not low <= quotient <= high:
            raise GuestException(_DIVIDE_ERROR)
        if size == 1:
            self.set(0, 2, quotient & 0xFF | (rest & 0xFF) << 8)
        else:
            self.set(0, size, quotient)
            self.set(2, size, rest)

    def _group5(self, op: int, size: int) -> None:
        self.modrm()
        kind = self.reg & 7
        if kind < 2:
            value = self.get_rm(size)
            result, flags = add(value, 1, size) if kind == 0 else subtract(value, 1, size)
            self.set_rm(size, result)
            self.set_flags(flags, ARITHMETIC_FLAGS & ~CF)
        elif op == 0xFF and kind == 2:
            target = self.get_rm(8)
            self.push(self.next)
            self.jump(target)
        elif op == 0xFF and kind == 4:
            self.jump(self.get_rm(8))
        elif op == 0xFF and kind == 6:
            self.push(self.get_rm(8))
        else:
            raise GuestException(UNDEFINED)

    def _shift(self, op: int, size: int) -> None:
        has_immediate = op in (0xC0, 0xC1)
        self.modrm(1 if has_immediate else 0)
        count = self.immediate(1) if has_immediate else 1 if op in (0xD0, 0xD1) else self.get(1, 1)
        count &= 63 if size == 8 else 31
        kind, bits = self.reg & 7, 8 * size
        value = self.get_rm(size)
        if kind in (2, 3):
            raise GuestException(UNDEFINED)  # RCL, RCR
        if count == 0:
            if self.rm is not None:
                self.set_rm(size, value)  # clears the upper half of a 4-byte operand all the same
            return
        if kind < 2:
            turn = count % bits
            left = turn if kind == 0 else (bits - turn) % bits
            result = (value << left | value >> bits - left) & mask(size)
            carry = result & 1 if kind == 0 else result >> bits - 1
            which = CF | OF
        elif kind in (4, 6):
            result = value << count & mask(size)
            carry = value << count >> bits & 1
            which = ARITHMETIC_FLAGS & ~AF
        else:
            number = extend(value, size) if kind == 7 else value
            result = number >> count & mask(size)
            carry = number >> count - 1 & 1
            which = ARITHMETIC_FLAGS & ~AF
        self.set_rm(size, result)
        overflow = OF if (value ^ result) >> bits - 1 & 1 else 0
        self.set_flags(result_flags(result, size) | carry | overflow, which)

    def _bit(self, op: int) -> None:
        size, bits = self.operand, 8 * self.operand
        if op == 0xBA:
            self.modrm(1)
            kind, number = self.reg & 7, self.immediate(1) & bits - 1
            if kind < 4:
                raise GuestException(UNDEFINED)
            kind -= 4
        else:
            self.modrm()
            kind, number = op >> 3 & 3, self.get(self.reg, size)
            if self.rm is None:  # the bit string may reach far from the address
                self.address = self.address + (extend(number, size) >> bits.bit_length() - 1) * size & MASK64
            number &= bits - 1
        value = self.get_rm(size)
        bit = 1 << number
        if kind:
            self.set_rm(size, value | bit if kind == 1 else value & ~bit if kind == 2 else value ^ bit)
        self.set_flags(CF if value & bit else 0, CF)

    # -- moves -----------------------------------------------------------------------------------

    def _exchange(self, size: int) -> None:
        self.modrm()
        one, other = self.get_rm(size), self.get(self.reg, size)
        self.set_rm(size, other)
        self.set(self.reg, size, one)

    def _compare_exchange(self, size: int) -> None:
        self.modrm()
        old, expected = self.get_rm(size), self.get(0, size)
        _, flags = subtract(expected, old, size)
        if old == expected:
            self.set_rm(size, self.get(self.reg, size))
        else:
            self.set_rm(size, old)  # the CPU stores in any case
            self.set(0, size, old)
        self.set_flags(flags)

    def _pop_rm(self) -> None:
        rsp = self.state["rsp"]
        value = self.read(rsp, 8)
        self.state["rsp"] = rsp + 8 & MASK64  # an address with RSP uses the new one
        try:
            self.modrm()
            if self.reg & 7:
                raise GuestException(UNDEFINED)
            self.set_rm(8, value)
        except Exception:
            self.state["rsp"] = rsp
            raise

    def _string(self, op: int, size: int) -> None:
        """One element; with REP the instruction stays where it is until RCX is 0, so that a kick gets through."""
        state = self.state
        if self.repeat and state["rcx"] == 0:
            return
        step = -size if state["rflags"] & DF else size
        base = state[self.segment] if self.segment else 0
        source, target = state["rsi"] + base, state["rdi"]
        kind = op & 0xFE
        again = True
        if kind == 0xA4:
            self.write(target, size, self.read(source, size))
        elif kind == 0xAA:
            self.write(target, size, self.get(0, size))
        elif kind == 0xAC:
            self.set(0, size, self.read(source, size))
        else:
            left = self.read(source, size) if kind == 0xA6 else self.get(0, size)
            _, flags = subtract(left, self.read(target, size), size)
            self.set_flags(flags)
            again = bool(flags & ZF) == (self.repeat == 0xF3)
        if kind in (0xA4, 0xA6, 0xAC):
            state["rsi"] = state["rsi"] + step & MASK64
        if kind != 0xAC:
            state["rdi"] = state["rdi"] + step & MASK64
        if self.repeat:
            self.repeated(again)

    def repeated(self, again: bool = True) -> None:
        """Count one repetition; come back to the same instruction unless it was the last."""
        self.state["rcx"] = self.state["rcx"] - 1 & MASK64
        if again and self.state["rcx"]:
            self.next = self.rip

    _pending_flags: int = 0
