/* Ending the thread, the doorbell, and calls that the host answers. */
#include "rift_internal.h"

enum { NO_SUCH_CALL = -38 }; /* -ENOSYS of Linux, which is what callers of system calls expect */

RIFT_RUNTIME(exit) void rift_exit(int status) {
    for (;;) {
        if (rift_is_supervisor()) {
            rift_doorbell_store_32(RIFT_DOORBELL_EXIT, (uint32_t)status);
            rift_halt(); /* reached only when the host has no exit handler: let it see a HALT, then try again */
        } else {
            rift_user_call(RIFT_CALL_EXIT, (uint64_t)(int64_t)status, 0, 0, 0, 0, 0);
        }
    }
}

RIFT_RUNTIME(doorbell_write) void rift_doorbell_write(uint32_t offset, uint64_t value) {
    if (rift_is_supervisor())
        rift_doorbell_store_64(offset, value);
    else
        rift_user_call(RIFT_CALL_DOORBELL_WRITE, offset, value, 0, 0, 0, 0);
}

RIFT_RUNTIME(doorbell_read) uint64_t rift_doorbell_read(uint32_t offset) {
    if (rift_is_supervisor())
        return rift_doorbell_load_64(offset);
    return (uint64_t)rift_user_call(RIFT_CALL_DOORBELL_READ, offset, 0, 0, 0, 0, 0);
}

/* The same calls where there is no border to cross. */
RIFT_RUNTIME(user_call) static int64_t supervisor_call(uint64_t number, uint64_t a0, uint64_t a1) {
    switch (number) {
    case RIFT_CALL_EXIT:
        rift_exit((int)a0);
    case RIFT_CALL_CONSOLE:
        rift_write((const void *)(uintptr_t)a0, (size_t)a1);
        return (int64_t)a1;
    case RIFT_CALL_RETURN:
        rift_doorbell_store_64(RIFT_DOORBELL_RETURN, a0);
        return 0;
    case RIFT_CALL_DOORBELL_WRITE:
        rift_doorbell_write((uint32_t)a0, a1);
        return 0;
    case RIFT_CALL_DOORBELL_READ:
        return (int64_t)rift_doorbell_read((uint32_t)a0);
    default:
        return NO_SUCH_CALL;
    }
}

RIFT_RUNTIME(user_call)
int64_t rift_user_call(uint64_t number, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5) {
    if (rift_is_supervisor())
        return supervisor_call(number, a0, a1);
    return rift_system_call(number, a0, a1, a2, a3, a4, a5);
}
