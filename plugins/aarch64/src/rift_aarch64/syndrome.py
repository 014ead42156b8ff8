"""ESR_EL1 in words: Arm ARM, ESR_EL1, "Exception Class" and the ISS encodings."""

from __future__ import annotations

from typing import NamedTuple

UNKNOWN, WFX, FP_TRAP, BRANCH_TARGET, ILLEGAL_STATE = 0x00, 0x01, 0x07, 0x0D, 0x0E
SVC, HVC, SMC, SYSTEM_REGISTER, SVE_TRAP = 0x15, 0x16, 0x17, 0x18, 0x19
INSTRUCTION_ABORTS, DATA_ABORTS = frozenset({0x20, 0x21}), frozenset({0x24, 0x25})
PC_ALIGNMENT, SP_ALIGNMENT, FP_EXCEPTION, SERROR, BRK = 0x22, 0x26, 0x2C, 0x2F, 0x3C
WATCHPOINTS = frozenset({0x34, 0x35})
IRQ, FIQ = 0x40, 0x41
"""Exceptions without a class: numbers beyond the six bits of one."""

CLASSES = {
    UNKNOWN: "undefined instruction",
    WFX: "trapped WFI or WFE",
    0x03: "trapped MCR or MRC",
    0x04: "trapped MCRR or MRRC",
    0x05: "trapped MCR or MRC",
    0x06: "trapped LDC or STC",
    FP_TRAP: "trapped floating point or vectors",
    0x09: "trapped pointer authentication",
    0x0A: "trapped 64-byte load or store",
    0x0C: "trapped MRRC",
    BRANCH_TARGET: "branch target",
    ILLEGAL_STATE: "illegal execution state",
    0x11: "SVC from AArch32",
    SVC: "SVC",
    HVC: "HVC",
    SMC: "SMC",
    SYSTEM_REGISTER: "trapped system instruction",
    SVE_TRAP: "trapped SVE",
    0x1A: "trapped ERET",
    0x1B: "transactional memory",
    0x1C: "pointer authentication failure",
    0x1D: "trapped SME",
    0x20: "instruction abort from EL0",
    0x21: "instruction abort",
    PC_ALIGNMENT: "PC alignment fault",
    0x24: "data abort from EL0",
    0x25: "data abort",
    SP_ALIGNMENT: "SP alignment fault",
    0x27: "memory copy and set",
    0x28: "floating-point exception from AArch32",
    FP_EXCEPTION: "floating-point exception",
    0x2D: "guarded control stack",
    SERROR: "SError",
    0x30: "breakpoint from EL0",
    0x31: "breakpoint",
    0x32: "software step from EL0",
    0x33: "software step",
    0x34: "watchpoint from EL0",
    0x35: "watchpoint",
    0x38: "BKPT from AArch32",
    BRK: "BRK",
    IRQ: "IRQ",
    FIQ: "FIQ",
}

_LEVEL_CODES = {0x00: "address size fault", 0x04: "translation fault", 0x08: "access flag fault",
                0x0C: "permission fault", 0x14: "external abort on a table walk",
                0x1C: "parity or ECC error on a table walk"}  # fmt: skip
_CODES = {
    0x10: "external abort",
    0x11: "tag check fault",
    0x13: "external abort on a table walk, level -1",
    0x18: "parity or ECC error",
    0x21: "alignment fault",
    0x23: "granule protection fault on a table walk, level -1",
    0x28: "granule protection fault",
    0x29: "address size fault, level -1",
    0x2B: "translation fault, level -1",
    0x30: "TLB conflict",
    0x31: "hardware update of the access flag is not supported there",
    0x34: "lockdown fault",
    0x35: "exclusive or atomic access is not supported there",
}
EXTERNAL_ABORT, ALIGNMENT_FAULT, TLB_CONFLICT = 0x10, 0x21, 0x30
_TRANSLATION, _PERMISSION, _ACCESS_FLAG, _ADDRESS_SIZE = 0x04, 0x0C, 0x08, 0x00
FAR_NOT_VALID = 1 << 10
_IS_WRITE = 1 << 6
_CACHE_MAINTENANCE = 1 << 8


def class_name(number: int) -> str:
    """Name of an exception class, or of an exception that has none."""
    return CLASSES.get(number, f"exception class {number:#x}")


def status_name(code: int) -> str:
    """A fault status code (DFSC, IFSC) with its level."""
    name = _LEVEL_CODES.get(code & 0x3C)
    if name is not None:
        return f"{name}, level {code & 3}"
    return _CODES.get(code, f"fault status {code:#x}")


def is_translation(code: int) -> bool:
    """Nothing is mapped there."""
    return code & 0x3C == _TRANSLATION


def is_permission(code: int) -> bool:
    """The page does not allow the access."""
    return code & 0x3C == _PERMISSION


def abort_words(exception: int, iss: int, user: bool) -> str:
    """An instruction or data abort: who did what, and why it failed."""
    code = iss & 0x3F
    if exception in INSTRUCTION_ABORTS:
        access = "an instruction fetch"
    elif iss & _CACHE_MAINTENANCE:
        access = "cache maintenance"
    else:
        access = "a write" if iss & _IS_WRITE else "a read"
    mode = "user" if user else "supervisor"
    kind = code & 0x3C
    if kind == _TRANSLATION:
        why = "found no page mapped"
    elif kind == _PERMISSION:
        why = "is not allowed by the page's permissions"
    elif kind == _ACCESS_FLAG:
        why = "found a page whose access flag is clear, which this CPU does not set by itself"
    elif kind == _ADDRESS_SIZE and code < 4:
        why = "led to a physical address that this CPU does not have"
    elif code == ALIGNMENT_FAULT:
        why = "is not aligned as device memory, or an exclusive or atomic access, needs it"
    elif code == EXTERNAL_ABORT:
        why = "was answered with an error by what stands at that physical address"
    else:
        why = "failed"
    return f"{access} in {mode} mode {why} ({status_name(code)})"


class SystemOperation(NamedTuple):
    """What a system instruction names: a register, or (op0 1) an operation, or (op0 0) a field of PSTATE."""

    op0: int
    op1: int
    crn: int
    crm: int
    op2: int
    is_read: bool

    @classmethod
    def of_syndrome(cls, iss: int) -> SystemOperation:
        """From the ISS of a trapped one."""
        return cls(iss >> 20 & 3, iss >> 14 & 7, iss >> 10 & 0xF, iss >> 1 & 0xF, iss >> 17 & 7, bool(iss & 1))

    @classmethod
    def of_instruction(cls, code: int) -> SystemOperation | None:
        """From the instruction itself; None if it is another one."""
        if code & 0xFFC0_0000 != 0xD500_0000:
            return None
        fields = code >> 19 & 3, code >> 16 & 7, code >> 12 & 0xF, code >> 8 & 0xF, code >> 5 & 7
        return cls(*fields, bool(code >> 21 & 1))

    @property
    def name(self) -> str:
        """As assemblers take it."""
        if self.op0 == 0:
            return _PSTATE_FIELDS.get((self.op1, self.op2), f"the PSTATE field {self.op1}, {self.op2}")
        number = self.op0, self.op1, self.crn, self.crm, self.op2
        return _REGISTERS.get(number, f"S{self.op0}_{self.op1}_C{self.crn}_C{self.crm}_{self.op2}")

    def __str__(self) -> str:
        if self.op0 == 1:
            return f"the system operation {self.name}"
        return f"{'a read' if self.is_read else 'a write'} of {self.name}"


_PSTATE_FIELDS = {(0, 3): "UAO", (0, 4): "PAN", (0, 5): "SPSel", (3, 6): "DAIFSet", (3, 7): "DAIFClr"}
_REGISTERS = {
    (3, 0, 0, 0, 0): "MIDR_EL1", (3, 0, 0, 0, 5): "MPIDR_EL1", (3, 0, 1, 0, 0): "SCTLR_EL1",
    (3, 0, 1, 0, 1): "ACTLR_EL1", (3, 0, 1, 0, 2): "CPACR_EL1", (3, 0, 2, 0, 0): "TTBR0_EL1",
    (3, 0, 2, 0, 1): "TTBR1_EL1", (3, 0, 2, 0, 2): "TCR_EL1", (3, 0, 4, 0, 0): "SPSR_EL1",
    (3, 0, 4, 0, 1): "ELR_EL1", (3, 0, 4, 1, 0): "SP_EL0", (3, 0, 4, 2, 0): "SPSel", (3, 0, 4, 2, 2): "CurrentEL",
    (3, 0, 5, 2, 0): "ESR_EL1", (3, 0, 6, 0, 0): "FAR_EL1", (3, 0, 7, 4, 0): "PAR_EL1",
    (3, 0, 10, 2, 0): "MAIR_EL1", (3, 0, 12, 0, 0): "VBAR_EL1", (3, 0, 13, 0, 1): "CONTEXTIDR_EL1",
    (3, 0, 13, 0, 4): "TPIDR_EL1", (3, 0, 14, 1, 0): "CNTKCTL_EL1", (3, 3, 4, 2, 1): "DAIF",
    (3, 3, 9, 13, 0): "PMCCNTR_EL0", (3, 3, 13, 0, 3): "TPIDRRO_EL0", (3, 3, 14, 0, 1): "CNTPCT_EL0",
    (3, 3, 14, 2, 1): "CNTP_CTL_EL0", (3, 3, 14, 2, 2): "CNTP_CVAL_EL0", (3, 3, 14, 3, 1): "CNTV_CTL_EL0",
    (3, 3, 14, 3, 2): "CNTV_CVAL_EL0",
}  # fmt: skip
"""Those that programs trip over most; op0, op1, CRn, CRm, op2."""


def floating_point_words(iss: int) -> str:
    """The ISS of a trapped floating-point exception."""
    names = ("invalid operation", "division by zero", "overflow", "underflow", "inexact")
    found = [name for bit, name in enumerate(names) if iss >> bit & 1]
    if iss >> 7 & 1:
        found.append("denormal input")
    return ", ".join(found) if iss >> 23 & 1 and found else "which one is not told"


def serror_words(iss: int) -> str:
    """The ISS of an SError."""
    if iss >> 24 & 1:
        return f"implementation defined syndrome {iss & 0xFF_FFFF:#x}"
    if iss & 0x3F == 0x11:
        kinds = {0: "uncontainable", 1: "unrecoverable", 2: "restartable", 3: "recoverable", 6: "corrected"}
        return f"an asynchronous error, {kinds.get(iss >> 10 & 7, 'of unknown severity')}"
    return "an error that came after the instruction which caused it"
