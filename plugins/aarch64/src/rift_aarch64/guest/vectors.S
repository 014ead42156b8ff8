/* rift_vectors: 16 entries of 128 bytes (Arm ARM, "Exception vectors"), to which the host points VBAR_EL1. Each stores
 * the interrupted registers in a struct rift_frame on the stack of EL1h and asks rift_exception_dispatch().
 *
 * If that handles it, the registers of the frame go back and ERET continues. If not, they go back as well, and the
 * entry's last part tells the host by one store to the doorbell. The host finds every register as it was, but X30 in
 * TPIDR_EL1; by PC it knows which entry it is, from ELR_EL1, SPSR_EL1, ESR_EL1 and FAR_EL1 what happened. A system call
 * of EL0 goes to the host as such, at once.
 *
 * Before anything is stored there, the stack is looked at (misaligned, or AT says that it cannot be written): an
 * exception without a stack is reported at once. So PAR_EL1 is not preserved, and TPIDR_EL1 is the vectors' own. */
#include "rift_assembler.h"
#include "rift_doorbell.h"

/* struct rift_frame */
#define FRAME_X30 (30 * 8)
#define FRAME_SP (31 * 8)
#define FRAME_PC (32 * 8)
#define FRAME_PSTATE (33 * 8)
#define FRAME_VECTOR (34 * 8)
#define FRAME_ERROR (35 * 8)
#define FRAME_FAULT_ADDRESS (36 * 8)
#define FRAME_SYNDROME (37 * 8)
#define FRAME_MODE (38 * 8)
#define FRAME_REPORT (39 * 8)
#define FRAME_BYTES (40 * 8)

#define SYSTEM_CALL 0x15 /* ESR_EL1.EC */
#define IRQ 0x40
#define MODE_EL1H 5

    .macro doorbell_to register
    movz \register, #(RIFT_DOORBELL & 0xffff)
    movk \register, #((RIFT_DOORBELL >> 16) & 0xffff), lsl #16
    .endm

    .macro save_vectors first, second
    stp q\first, q\second, [sp, #(16 * \first + 16)]
    .endm
    .macro load_vectors first, second
    ldp q\first, q\second, [sp, #(16 * \first + 16)]
    .endm
    .macro all_vectors what
    \what 0, 1
    \what 2, 3
    \what 4, 5
    \what 6, 7
    \what 8, 9
    \what 10, 11
    \what 12, 13
    \what 14, 15
    \what 16, 17
    \what 18, 19
    \what 20, 21
    \what 22, 23
    \what 24, 25
    \what 26, 27
    \what 28, 29
    \what 30, 31
    .endm

    /* `kind`: 0 synchronous, 1 IRQ, 2 FIQ, 3 SError */
    .macro entry from_el0, kind
    .balign 128
    msr tpidr_el1, x30
    sub x30, sp, #FRAME_BYTES
    at s1e1w, x30
    isb
    tst x30, #15
    mrs x30, par_el1
    b.ne 1f
    tbnz x30, #0, 1f
    sub sp, sp, #FRAME_BYTES
    stp x0, x1, [sp]
    mrs x1, esr_el1
    adr x30, 1f
    mov x0, #\kind
    b common_\from_el0
1:  doorbell_to x30
    str wzr, [x30, #RIFT_DOORBELL_FAULT]
    mrs x30, tpidr_el1 /* only if the host, having repaired something, lets the thread go on */
    eret
    .endm

    /* Where the interrupted registers are, from here on. 31 is SP, 32 PC (DWARF for the Arm 64-bit Architecture). The
     * frame is no .cfi_signal_frame: LLDB leaves all frames of a file aside that has one. */
    .macro interrupted
    .irp register, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, \
                   28, 29, 30
    RIFT_UNWIND(offset x\register, 8 * \register - FRAME_BYTES)
    .endr
    RIFT_UNWIND(offset 31, FRAME_SP - FRAME_BYTES)
    RIFT_UNWIND(offset 32, FRAME_PC - FRAME_BYTES)
    .endm

    RIFT_UNWIND_SECTIONS
    RIFT_CODE(.rift.text.vectors)
    RIFT_GLOBAL(rift_vectors)
    RIFT_FUNCTION(rift_vectors)
    .balign 2048
RIFT_C(rift_vectors):
    .irp from_el0, 0, 0, 1, 1 /* EL1t, EL1h, EL0, EL0 in AArch32 */
    .irp kind, 0, 1, 2, 3
    entry \from_el0, \kind
    .endr
    .endr
    .balign 128
    RIFT_END(rift_vectors)

    /* X0: kind, X1: ESR_EL1, X30: where to report; X0 and X1 are in the frame at SP already. */
    RIFT_FUNCTION(common_1)
common_1:
    stp x2, x3, [sp, #16]
    lsr x2, x1, #26
    cmp x2, #SYSTEM_CALL
    ccmp x0, #0, #0, eq
    b.ne common
    ldp x0, x1, [sp]
    ldp x2, x3, [sp, #16]
    add sp, sp, #FRAME_BYTES
    doorbell_to x30
    str x8, [x30, #RIFT_DOORBELL_USER_CALL]
    mrs x30, tpidr_el1 /* the host has put the answer into X0 */
    eret
    RIFT_END(common_1)

    RIFT_FUNCTION(common_0)
    RIFT_UNWIND(startproc simple)
    RIFT_UNWIND(return_column 32)
    RIFT_UNWIND(def_cfa sp, FRAME_BYTES)
common_0:
    stp x2, x3, [sp, #16]
common:
    stp x4, x5, [sp, #32]
    stp x6, x7, [sp, #48]
    stp x8, x9, [sp, #64]
    stp x10, x11, [sp, #80]
    stp x12, x13, [sp, #96]
    stp x14, x15, [sp, #112]
    stp x16, x17, [sp, #128]
    stp x18, x19, [sp, #144]
    stp x20, x21, [sp, #160]
    stp x22, x23, [sp, #176]
    stp x24, x25, [sp, #192]
    stp x26, x27, [sp, #208]
    stp x28, x29, [sp, #224]
    mrs x2, tpidr_el1
    mrs x3, elr_el1
    mrs x4, spsr_el1
    mrs x5, far_el1
    mrs x6, sp_el0
    mrs x7, tpidrro_el0
    add x8, sp, #FRAME_BYTES
    and x9, x4, #0x1f
    cmp x9, #MODE_EL1H
    csel x6, x8, x6, eq
    lsr x10, x1, #26 /* synchronous and SError: the exception class */
    and x11, x1, #0x1ffffff
    sub x9, x0, #1
    cmp x9, #1
    add x9, x9, #IRQ
    csel x10, x9, x10, ls
    csel x11, xzr, x11, ls
    stp x2, x6, [sp, #FRAME_X30]
    stp x3, x4, [sp, #FRAME_PC]
    stp x10, x11, [sp, #FRAME_VECTOR]
    stp x5, x1, [sp, #FRAME_FAULT_ADDRESS]
    stp x7, x30, [sp, #FRAME_MODE]
    mov x9, #1 /* rift_is_supervisor() */
    msr tpidrro_el0, x9
    mov x0, sp
    mov x1, x5
    mov x29, #0 /* back traces of the handler end here */
    mov x30, #0
    interrupted
#ifdef RIFT_SIMD
    /* The handler may be compiled with vector instructions, all of which the interrupted code may use too. */
    sub sp, sp, #(32 * 16 + 16)
    RIFT_UNWIND(adjust_cfa_offset 32 * 16 + 16)
    all_vectors save_vectors
    mrs x9, fpsr
    mrs x10, fpcr
    stp x9, x10, [sp]
#endif
    bl RIFT_C(rift_exception_dispatch)
#ifdef RIFT_SIMD
    ldp x9, x10, [sp]
    msr fpsr, x9
    msr fpcr, x10
    all_vectors load_vectors
    add sp, sp, #(32 * 16 + 16)
    RIFT_UNWIND(adjust_cfa_offset -(32 * 16 + 16))
#endif
    msr daifset, #7 /* the handler may have let interrupts in */
    /* Exceptions inside the handler have changed these. */
    ldp x2, x6, [sp, #FRAME_X30]
    ldp x3, x4, [sp, #FRAME_PC]
    ldp x5, x1, [sp, #FRAME_FAULT_ADDRESS]
    ldp x7, x30, [sp, #FRAME_MODE]
    msr tpidr_el1, x2
    msr elr_el1, x3
    msr spsr_el1, x4
    msr far_el1, x5
    msr esr_el1, x1
    msr tpidrro_el0, x7
    and x9, x4, #0x1f
    cmp x9, #MODE_EL1H
    b.eq 1f
    msr sp_el0, x6
1:  cmp w0, #0
    adr x9, resume
    csel x30, x30, x9, eq
    ldp x2, x3, [sp, #16]
    ldp x4, x5, [sp, #32]
    ldp x6, x7, [sp, #48]
    ldp x8, x9, [sp, #64]
    ldp x10, x11, [sp, #80]
    ldp x12, x13, [sp, #96]
    ldp x14, x15, [sp, #112]
    ldp x16, x17, [sp, #128]
    ldp x18, x19, [sp, #144]
    ldp x20, x21, [sp, #160]
    ldp x22, x23, [sp, #176]
    ldp x24, x25, [sp, #192]
    ldp x26, x27, [sp, #208]
    ldp x28, x29, [sp, #224]
    ldp x0, x1, [sp], #FRAME_BYTES
    RIFT_UNWIND(def_cfa_offset 0)
    br x30
resume:
    mrs x30, tpidr_el1
    eret
    RIFT_UNWIND(endproc)
    RIFT_END(common_0)

    RIFT_GLOBAL(rift_vectors_end)
RIFT_C(rift_vectors_end): /* debuggers step over exceptions: between the two symbols they do not stop */

    RIFT_END_OF_FILE
