/* rift_vectors: 256 entries of 16 bytes, one an exception vector, which the host puts into the IDT. Each
 * makes the frame uniform (an error code of 0 where the CPU pushes none, SDM 3A, 6.13) and goes to one common
 * part, which asks rift_exception_dispatch() with a pointer to struct rift_frame.
 *
 * If that handles it, the registers of the frame go back and IRETQ continues. If not, they go back as well,
 * RSP then points at [vector, error, RIP, CS, RFLAGS, RSP, SS], and one store to the doorbell tells the
 * host, which finds every register as it was. From user mode the CPU has changed to the stack of TSS.RSP0.
 * SWAPGS is not used: GS belongs to the payload. */
#include "rift_assembler.h"
#include "rift_doorbell.h"

#define ENTRY_BYTES 16
#define SAVED_BYTES (15 * 8) /* r15 to rax in struct rift_frame */

    /* A macro with a parameter: Apple's assembler takes $0 for an argument in bodies that have none. */
    .macro entry number
    .balign ENTRY_BYTES, 0xcc
    /* With an error code: #DF, #TS, #NP, #SS, #GP, #PF, #AC, #CP, #VC, #SX. */
    .if (\number == 8) || ((\number >= 10) && (\number <= 14)) || (\number == 17) || (\number == 21) || (\number == 29) || (\number == 30)
    RIFT_UNWIND(def_cfa_offset 48)
    .else
    RIFT_UNWIND(def_cfa_offset 40)
    pushq $0
    RIFT_UNWIND(def_cfa_offset 48)
    .endif
    pushq $\number
    RIFT_UNWIND(def_cfa_offset 56)
    .byte 0xe9 /* jmp rel32: always the long form, so that all entries look alike */
    .long common - . - 4
    .endm

    /* Of what the CPU has pushed: five words, above which is the end of the frame (CFA). It is no .cfi_signal_frame: LLDB
     * leaves all frames of a file aside that has one. */
    .macro begin_unwinding
    RIFT_UNWIND(startproc simple)
    RIFT_UNWIND(def_cfa %rsp, 56)
    RIFT_UNWIND(offset %rip, -40)
    RIFT_UNWIND(offset %rsp, -16)
    .endm

    .macro save register
    pushq %\register
    RIFT_UNWIND(adjust_cfa_offset 8)
    RIFT_UNWIND(rel_offset %\register, 0)
    .endm

    .macro restore register
    popq %\register
    RIFT_UNWIND(adjust_cfa_offset -8)
    RIFT_UNWIND(restore %\register)
    .endm

    RIFT_UNWIND_SECTIONS
    RIFT_CODE(.rift.text.vectors)
    RIFT_GLOBAL(rift_vectors)
    RIFT_FUNCTION(rift_vectors)
    begin_unwinding
    .balign 64
RIFT_C(rift_vectors):
    .set RIFT_LOCAL(number), 0
    .rept 256
    entry RIFT_LOCAL(number)
    .set RIFT_LOCAL(number), RIFT_LOCAL(number) + 1
    .endr
    .balign ENTRY_BYTES, 0xcc
    RIFT_UNWIND(endproc)
    RIFT_END(rift_vectors)

    RIFT_FUNCTION(common)
    begin_unwinding
common:
    save rax
    save rbx
    save rcx
    save rdx
    save rsi
    save rdi
    save rbp
    save r8
    save r9
    save r10
    save r11
    save r12
    save r13
    save r14
    save r15
    movq %rsp, %rdi /* the frame */
    movq %cr2, %rsi /* read before anything here can fault */
    movq %rsp, %rbx /* preserved by the call, whatever the alignment */
    RIFT_UNWIND(def_cfa_register %rbx)
    xorl %ebp, %ebp /* back traces of the handler end here */
    cld
    andq $-64, %rsp
#ifdef RIFT_SIMD
    /* The handler may be compiled with vector instructions, all of which the interrupted code may use too.
     * Its parts of MXCSR that matter (masks, rounding) are not changed by compiled code. */
#ifdef __AVX__
    subq $512, %rsp
    .irp register, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups %ymm\register, 32 * \register(%rsp)
    .endr
#else
    subq $256, %rsp
    .irp register, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups %xmm\register, 16 * \register(%rsp)
    .endr
#endif
#endif
    call RIFT_C(rift_exception_dispatch)
#ifdef RIFT_SIMD
#ifdef __AVX__
    .irp register, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    vmovups 32 * \register(%rsp), %ymm\register
    .endr
#else
    .irp register, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15
    movups 16 * \register(%rsp), %xmm\register
    .endr
#endif
#endif
    movq %rbx, %rsp
    RIFT_UNWIND(def_cfa_register %rsp)
    testl %eax, %eax
    restore r15 /* POP leaves the flags of TEST alone */
    restore r14
    restore r13
    restore r12
    restore r11
    restore r10
    restore r9
    restore r8
    restore rbp
    restore rdi
    restore rsi
    restore rdx
    restore rcx
    restore rbx
    restore rax
    jz unhandled
    addq $16, %rsp /* vector and error code */
    RIFT_UNWIND(adjust_cfa_offset -16)
    iretq

    RIFT_UNWIND(adjust_cfa_offset 16)
unhandled:
    .byte 0xa3 /* mov %eax, moffs64: an address of 64 bits, and no register is changed */
    .quad RIFT_DOORBELL + RIFT_DOORBELL_FAULT
    addq $16, %rsp /* only if the host, having repaired something, lets the thread go on */
    RIFT_UNWIND(adjust_cfa_offset -16)
    iretq
    RIFT_UNWIND(endproc)
    RIFT_END(common)

    RIFT_GLOBAL(rift_vectors_end)
RIFT_C(rift_vectors_end): /* debuggers step over exceptions: between the two symbols they do not stop */

    RIFT_END_OF_FILE
