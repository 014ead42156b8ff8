/* Which handler an exception goes to. */
#include "rift_internal.h"

static rift_exception_fn *registered;

__attribute__((weak)) RIFT_RUNTIME(vectors)
int rift_exception(uint64_t vector, uint64_t error, struct rift_frame *frame, uintptr_t fault_address) {
    (void)vector;
    (void)error;
    (void)frame;
    (void)fault_address;
    return 0;
}

RIFT_RUNTIME(set_exception_handler) rift_exception_fn *rift_set_exception_handler(rift_exception_fn *handler) {
    return rift_atomic_exchange(&registered, handler);
}

RIFT_RUNTIME(vectors) int rift_exception_dispatch(struct rift_frame *frame, uintptr_t fault_address) {
    if (rift_exception_is_final(frame, fault_address))
        return 0;
    rift_exception_fn *handler = rift_atomic_load(&registered);
    if (!handler)
        handler = rift_exception;
    return handler(frame->vector, frame->error, frame, fault_address);
}
