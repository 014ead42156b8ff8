/* What the host tells: its room, and what the payload was built for. */
#include "rift_internal.h"

/* In .data, not .bss: the host recognises it by what stands in it. */
__attribute__((used)) struct rift_info rift_info = {
    .magic = RIFT_INFO_MAGIC,
    .version = RIFT_INFO_VERSION,
    .bytes = sizeof(struct rift_info),
    .doorbell = RIFT_DOORBELL,
};

RIFT_RUNTIME(spare_page) uint64_t rift_spare_page(void) {
    static uint64_t taken;
    const uint64_t page = rift_info.page_size;
    if (!page)
        return 0;
    const uint64_t at = __atomic_fetch_add(&taken, page, __ATOMIC_RELAXED);
    if (at + page > rift_info.spare_size) {
        __atomic_fetch_sub(&taken, page, __ATOMIC_RELAXED);
        return 0;
    }
    if (rift_info.spare_gva)
        memset((void *)(uintptr_t)(rift_info.spare_gva + at), 0, (size_t)page);
    return rift_info.spare_gpa + at;
}
