/* A guest that handles its own page faults: memory appears when it is touched, as in any operating system.
 *
 * `heap` is an address range that nothing is mapped at. The first touch of each page raises a page fault; the handler
 * takes a spare page, writes the page-table entry, and the instruction that faulted is executed again. */
#include <rift_guest.h>

enum { PAGES = 3, PAGE = 4096 };

/* Behind the payload's own 2 MiB, in a table of the image's: no new table is needed. */
static volatile uint32_t *const heap = (volatile uint32_t *)0x3f0000;

volatile uint32_t pages_mapped; /* the host reads it */

int rift_exception(uint64_t vector, uint64_t error, struct rift_frame *frame, uintptr_t fault_address) {
    (void)frame;
    if (rift_cause(vector, error) != RIFT_CAUSE_PAGE_FAULT)
        return 0;
    if (fault_address - (uintptr_t)heap >= PAGES * PAGE) {
        rift_printf("  page fault at %#llx: not ours\n", (unsigned long long)fault_address);
        return 0; /* a wild pointer: the host makes a report of it */
    }
    const uint64_t page = rift_spare_page();
    if (!page || rift_map_page(fault_address, page, RIFT_READ | RIFT_WRITE))
        return 0;
    ++pages_mapped;
    rift_printf("  page fault at %#llx (%s): mapped guest-physical %#llx\n", (unsigned long long)fault_address,
                rift_fault_access(vector, error) & RIFT_WRITE ? "write" : "read", (unsigned long long)page);
    return 1;
}

int main(void) {
    rift_puts("writing to pages that are not there\n");
    for (uint32_t page = 0; page < PAGES; ++page)
        heap[page * (PAGE / sizeof *heap)] = 1000 + page;

    uint32_t sum = 0;
    for (uint32_t page = 0; page < PAGES; ++page)
        sum += heap[page * (PAGE / sizeof *heap)];
    rift_printf("read back: sum %u, %u pages mapped\n", sum, pages_mapped);
    return sum == 3003 ? 0 : 1;
}

/* Leaves the range: machine.call("stray") ends with the host's report. */
int stray(void) {
    return (int)heap[PAGES * PAGE / sizeof *heap];
}
