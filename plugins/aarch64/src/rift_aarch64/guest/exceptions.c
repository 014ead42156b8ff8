/* AArch64's vectors in the words of rift_guest.h. */
#include "rift_internal.h"

/* Fault status codes (ESR_EL1, DFSC and IFSC), without the level. */
enum { STATUS_KIND = 0x3c, STATUS_TRANSLATION = 0x04, STATUS_ACCESS_FLAG = 0x08, STATUS_PERMISSION = 0x0c };

/* What must not be resumed never comes here: the vectors report an exception without a stack, and system calls. */
RIFT_RUNTIME(vectors) bool rift_exception_is_final(const struct rift_frame *frame, uintptr_t fault_address) {
    (void)frame;
    (void)fault_address;
    return false;
}

RIFT_RUNTIME(cause) static bool is_abort(uint64_t vector) {
    return vector == RIFT_VECTOR_INSTRUCTION_ABORT_EL0 || vector == RIFT_VECTOR_INSTRUCTION_ABORT ||
           vector == RIFT_VECTOR_DATA_ABORT_EL0 || vector == RIFT_VECTOR_DATA_ABORT;
}

RIFT_RUNTIME(cause) enum rift_cause rift_cause(uint64_t vector, uint64_t error) {
    const uint64_t kind = error & STATUS_KIND;
    if (is_abort(vector) && (kind == STATUS_TRANSLATION || kind == STATUS_ACCESS_FLAG || kind == STATUS_PERMISSION))
        return RIFT_CAUSE_PAGE_FAULT;
    switch (vector) {
    case RIFT_VECTOR_UNDEFINED:
        return RIFT_CAUSE_UNDEFINED_INSTRUCTION;
    case RIFT_VECTOR_BREAKPOINT:
        return RIFT_CAUSE_BREAKPOINT;
    case RIFT_VECTOR_WFX:
    case RIFT_VECTOR_SYSTEM_REGISTER:
    case RIFT_VECTOR_ILLEGAL_STATE:
    case RIFT_VECTOR_PC_ALIGNMENT:
    case RIFT_VECTOR_SP_ALIGNMENT:
    case RIFT_VECTOR_INSTRUCTION_ABORT_EL0: /* alignment, external aborts and the like */
    case RIFT_VECTOR_INSTRUCTION_ABORT:
    case RIFT_VECTOR_DATA_ABORT_EL0:
    case RIFT_VECTOR_DATA_ABORT:
        return RIFT_CAUSE_PROTECTION;
    default:
        return RIFT_CAUSE_OTHER;
    }
}

RIFT_RUNTIME(fault_access) int rift_fault_access(uint64_t vector, uint64_t error) {
    switch (vector) {
    case RIFT_VECTOR_INSTRUCTION_ABORT:
        return RIFT_EXECUTE;
    case RIFT_VECTOR_INSTRUCTION_ABORT_EL0:
        return RIFT_EXECUTE | RIFT_USER;
    case RIFT_VECTOR_DATA_ABORT:
    case RIFT_VECTOR_DATA_ABORT_EL0:
        break;
    default:
        return 0;
    }
    const bool writes = (error & RIFT_ABORT_WRITE) && !(error & RIFT_ABORT_CACHE_MAINTENANCE);
    return (writes ? RIFT_WRITE : RIFT_READ) | (vector == RIFT_VECTOR_DATA_ABORT_EL0 ? RIFT_USER : 0);
}

RIFT_RUNTIME(frame_pc) uintptr_t *rift_frame_pc(struct rift_frame *frame) {
    return (uintptr_t *)&frame->pc; /* uint64_t is another type of the same size on some systems */
}
