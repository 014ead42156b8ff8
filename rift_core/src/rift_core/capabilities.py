"""What a backend may be able to do beyond the base contract, by name.

A backend states the names that hold here in ``ProbeResult.capabilities`` and ``Vm.capabilities``; conformance suites
ask for them, and what is missing is an ``UnsupportedError`` that names it, never a silent no-op.
``docs/capabilities.md`` is made from this table. A backend of a third party may have names of its own: with a dot in
them, such as ``acme.rewind``.
"""

from __future__ import annotations

CAPABILITIES: dict[str, str] = {
    "parallel_vcpus": "the vCPUs of one machine run at the same time",
    "multiple_vms": "a process may have more than one machine",
    "save_restore": "`VCpu.save` and `restore`: the whole state of a vCPU in one piece",
    "readonly_memory": "a region can be read-only to the guest: a store to it is an exit and changes nothing "
    "(`Machine.share(..., writable=False)`)",
    "inject_exception": "`VCpu.inject_exception`, and the answer `Fault`: the host raises an exception in the guest",
    "inject_interrupt": "the host raises an interrupt in the guest",
    "profile": "the backend counts executed code by itself (`rift run --profile`)",
    "user_msr_exit": "x86-64: an access to a model-specific register that the backend does not know is a "
    "SYSTEM_REGISTER exit; without it the guest gets #GP",
    "memory_fault_exit": "memory that the host has taken away gives MEMORY_FAULT instead of MMIO",
    "hypercall_exit": "the ISA's hypercall instruction is a HYPERCALL exit",
    "halt_exit": "AArch64: WFI without anything that could end it is a HALT exit",
    "tsc_offset": "x86-64: a time-stamp counter that the host writes stays where it was put and runs on from there",
    "syscall": "x86-64: SYSCALL in user mode arrives in supervisor mode",
    "software_interrupts": "x86-64: INT n works in supervisor mode",
    "software_interrupts_user": "the same in user mode",
    "vector_supervisor": "vector and floating-point arithmetic works in supervisor mode: `simd = true` is usable there",
    "debug_single_step": "`VCpu.set_debug(single_step=True)` stops after each instruction of supervisor mode",
    "debug_single_step_user": "the same in user mode",
    "debug_sw_breakpoint": "the breakpoint instruction (INT3, BRK) stops supervisor mode, and does not reach the guest",
    "debug_sw_breakpoint_user": "the same in user mode",
    "debug_hw_breakpoint": "breakpoints in the CPU's debug registers stop supervisor mode",
    "debug_hw_breakpoint_user": "the same in user mode",
    "debug_watchpoint": "accesses of supervisor mode to watched addresses stop it",
    "debug_watchpoint_user": "the same in user mode",
    "breakpoint_failure": "x86-64: INT3 in supervisor mode is a FAIL_ENTRY exit with the program counter at it: the "
    "hypervisor cannot carry it out",
    "breakpoint_vector": "x86-64: INT3 in supervisor mode arrives as #BP through the guest's own IDT",
    "breakpoint_vector_user": "the same in user mode",
    "step_vector": "x86-64: the guest's own trap flag gives #DB through its own IDT in supervisor mode",
    "step_vector_user": "the same in user mode",
}
"""Name and meaning, in the order of the page."""


def unknown(names: frozenset[str]) -> list[str]:
    """Those that neither stand in the table nor have a dot in them."""
    return sorted(name for name in names if name not in CAPABILITIES and "." not in name)
