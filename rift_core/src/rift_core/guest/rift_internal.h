/* Shared by the runtime's own sources; payloads do not include it. */
#ifndef RIFT_INTERNAL_H
#define RIFT_INTERNAL_H

#include "rift_section.h" /* before all declarations */

#include "rift_guest.h"

/* Called by the ISA's vectors. Nonzero: go on at the frame; zero: report it to the host. */
int rift_exception_dispatch(struct rift_frame *frame, uintptr_t fault_address);

/* Exceptions that the handler is never asked about: the ISA says which. */
bool rift_exception_is_final(const struct rift_frame *frame, uintptr_t fault_address);

/* The doorbell by plain stores: supervisor mode only. */
static inline void rift_doorbell_store_8(uint32_t offset, uint8_t value) {
    rift_device_store_8((uintptr_t)RIFT_DOORBELL + offset, value);
}
static inline void rift_doorbell_store_32(uint32_t offset, uint32_t value) {
    rift_device_store_32((uintptr_t)RIFT_DOORBELL + offset, value);
}
static inline void rift_doorbell_store_64(uint32_t offset, uint64_t value) {
    rift_device_store_64((uintptr_t)RIFT_DOORBELL + offset, value);
}
static inline uint64_t rift_doorbell_load_64(uint32_t offset) {
    return rift_device_load_64((uintptr_t)RIFT_DOORBELL + offset);
}

#endif
