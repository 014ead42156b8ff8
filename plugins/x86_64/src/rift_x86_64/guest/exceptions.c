/* x86-64's vectors in the words of rift_guest.h. */
#include "rift_internal.h"

RIFT_RUNTIME(vectors) bool rift_exception_is_final(const struct rift_frame *frame, uintptr_t fault_address) {
    /* A double fault cannot be resumed (SDM 3A, 6.15); its handler would run on a stack that every further
     * fault in it starts again from the top. */
    if (frame->vector == RIFT_VECTOR_DOUBLE_FAULT)
        return true;
    /* Where SYSCALL stays in user mode it arrives as a fetch from the supervisor's page that LSTAR names.
     * The host tells that from a wild jump; neither is for the payload to repair. */
    const uint64_t system_call = RIFT_PAGE_FAULT_PROTECTION | RIFT_PAGE_FAULT_USER | RIFT_PAGE_FAULT_FETCH;
    return frame->vector == RIFT_VECTOR_PAGE_FAULT && frame->error == system_call && frame->rip == fault_address;
}

RIFT_RUNTIME(cause) enum rift_cause rift_cause(uint64_t vector, uint64_t error) {
    (void)error;
    switch (vector) {
    case RIFT_VECTOR_INVALID_OPCODE:
        return RIFT_CAUSE_UNDEFINED_INSTRUCTION;
    case RIFT_VECTOR_PAGE_FAULT:
        return RIFT_CAUSE_PAGE_FAULT;
    case RIFT_VECTOR_GENERAL_PROTECTION:
        return RIFT_CAUSE_PROTECTION;
    case RIFT_VECTOR_DIVIDE_ERROR:
        return RIFT_CAUSE_DIVIDE;
    case RIFT_VECTOR_BREAKPOINT:
        return RIFT_CAUSE_BREAKPOINT;
    default:
        return RIFT_CAUSE_OTHER;
    }
}

RIFT_RUNTIME(fault_access) int rift_fault_access(uint64_t vector, uint64_t error) {
    if (vector != RIFT_VECTOR_PAGE_FAULT)
        return 0;
    const int user = error & RIFT_PAGE_FAULT_USER ? RIFT_USER : 0;
    if (error & RIFT_PAGE_FAULT_FETCH)
        return RIFT_EXECUTE | user;
    return (error & RIFT_PAGE_FAULT_WRITE ? RIFT_WRITE : RIFT_READ) | user;
}

RIFT_RUNTIME(frame_pc) uintptr_t *rift_frame_pc(struct rift_frame *frame) {
    return (uintptr_t *)&frame->rip; /* uint64_t is another type of the same size on some systems */
}
