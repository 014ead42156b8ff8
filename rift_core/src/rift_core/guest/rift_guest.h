/* What a guest payload includes. The same interface for every ISA; `rift build` adds the sources behind it.
 *
 *     #include <rift_guest.h>
 *     int main(void) {
 *         rift_printf("hello from %s\n", rift_privilege_name());
 *         return 0;
 *     }
 *
 * A thread starts at its entry function (by default `main`) with its arguments in the C calling convention;
 * what the function returns is the thread's status. There is no C library: the compiler's own freestanding
 * headers (stdint.h, stddef.h, stdbool.h, stdarg.h) and what stands here is all there is.
 *
 * Everything here works in supervisor and in user mode unless it says otherwise, and may be called by
 * several threads at once. */
#ifndef RIFT_GUEST_H
#define RIFT_GUEST_H

#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "rift_doorbell.h"
#include "rift_format.h"

#include "rift_guest_isa.h" /* struct rift_frame, struct rift_page_entry, barriers, registers: the ISA's part */

/* ---- ending, console, host ------------------------------------------------------------------------------- */

/* Ends the calling thread with this status. */
__attribute__((noreturn)) void rift_exit(int status);

void rift_putchar(char character);
void rift_puts(const char *text); /* as it stands: no newline is added */
void rift_write(const void *bytes, size_t count);
int rift_printf(const char *format, ...) __attribute__((format(printf, 1, 2))); /* see rift_format.h */
int rift_vprintf(const char *format, va_list arguments);

/* A store to, and a load of 8 bytes from, the doorbell page at `offset`: whoever serves that offset on the
 * host answers. RIFT_DOORBELL_USER_FIRST to _LAST are free for exit handlers of your own. */
void rift_doorbell_write(uint32_t offset, uint64_t value);
uint64_t rift_doorbell_read(uint32_t offset);

/* Asks the host: RIFT_CALL_..., or the number of an exit handler that serves USER_CALL. In user mode this is
 * a system call; the result is what the host answers, -38 (-ENOSYS) where nobody does. In supervisor mode
 * the numbers below RIFT_CALL_HANDLERS are served through the doorbell, and the others give -38. */
int64_t rift_user_call(uint64_t number, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5);

/* ---- exceptions ------------------------------------------------------------------------------------------ */

/* An exception's handler. It may change the frame (the registers with which the thread goes on, among them
 * the program counter) or the cause, such as a page-table entry. Nonzero: handled, go on at the frame.
 * Zero: the thread ends, and the host makes a report of the frame as it is then.
 *
 * `vector` and `error` are the CPU's numbers (x86-64: vector and error code; AArch64: exception class, or a number
 * beyond them for an interrupt, and syndrome); `fault_address` is the address that faulted, meaningful for page faults
 * only. The handler runs in supervisor mode, on the stack of the thread that faulted (of its supervisor stack for user
 * mode). A fault whose stack is lost (x86-64: a double fault), and a system call, go to the host without asking it. */
typedef int rift_exception_fn(uint64_t vector, uint64_t error, struct rift_frame *frame, uintptr_t fault_address);

/* Defined weakly as "not handled": a payload may define it ... */
rift_exception_fn rift_exception;

/* ... or set another one, for all threads; NULL goes back to rift_exception. Returns the one before. */
rift_exception_fn *rift_set_exception_handler(rift_exception_fn *handler);

/* What an exception is, in words that every ISA shares. */
enum rift_cause {
    RIFT_CAUSE_OTHER = 0,
    RIFT_CAUSE_UNDEFINED_INSTRUCTION = 1,
    RIFT_CAUSE_PAGE_FAULT = 2,
    RIFT_CAUSE_PROTECTION = 3, /* x86-64: #GP */
    RIFT_CAUSE_DIVIDE = 4,
    RIFT_CAUSE_BREAKPOINT = 5,
};
enum rift_cause rift_cause(uint64_t vector, uint64_t error);

/* What a page fault's access was: RIFT_READ, RIFT_WRITE or RIFT_EXECUTE, and RIFT_USER if user mode made it. 0 for
 * any other exception. */
int rift_fault_access(uint64_t vector, uint64_t error);

/* Where the thread goes on: an lvalue inside the frame. */
uintptr_t *rift_frame_pc(struct rift_frame *frame);

/* ---- registers (supervisor mode) ----------------------------------------------------------------------------- */

/* A register that only supervisor mode can read. */
struct rift_system_value {
    const char *name;    /* as in the manual */
    const char *meaning; /* in a few words */
    uint64_t value;
};

/* The one with that index; false where there is none. For programs that show where they are on any ISA. */
bool rift_system_value(unsigned index, struct rift_system_value *value);

/* ---- page tables (supervisor mode) ------------------------------------------------------------------------- */

/* The same bits as rift_core.memory.Permission. READ is implied wherever a page is mapped. */
enum { RIFT_READ = 1, RIFT_WRITE = 2, RIFT_EXECUTE = 4, RIFT_USER = 8 };

enum rift_walk_status {
    RIFT_WALK_MAPPED = 0,
    RIFT_WALK_NOT_PRESENT = 1,  /* `entry` is the one that is not present, `level` says of which table */
    RIFT_WALK_NOT_CANONICAL = 2,
    RIFT_WALK_OUT_OF_REACH = 3, /* a table is outside the memory that rift_info names */
};

struct rift_walk {
    uint64_t *entry;   /* the entry at which the walk ended, or NULL */
    uint64_t value;    /* what it held */
    unsigned level;    /* 1: the table of the smallest pages */
    int permissions;   /* RIFT_..., of all levels together */
    uint64_t physical; /* guest-physical address, where mapped */
    uint64_t page_size;
};

/* Walks the tables that are in force. Returns an enum rift_walk_status. */
int rift_walk(uintptr_t address, struct rift_walk *walk);

/* Maps the page at `address` to guest-physical `physical`, both rounded down to a page, with RIFT_...
 * permissions, and flushes. An existing small page is replaced; missing tables are made of spare pages.
 * Returns 0, or -1: not canonical, inside a large page, or no page left for a table. Threads that change
 * the same tables at the same time must agree on a lock among themselves. */
int rift_map_page(uintptr_t address, uint64_t physical, int permissions);

/* Removes the small page at `address` and flushes. Returns 0, or -1 where there is none. */
int rift_unmap_page(uintptr_t address);

/* A page that nothing uses, filled with zeros where rift_info.spare_gva allows: its guest-physical address,
 * or 0 when all are used up (see [memory] in the configuration). Pages are not given back. */
uint64_t rift_spare_page(void);

/* Makes this CPU forget its translation of one address, or all of them: after a change of an entry that was
 * present. Other CPUs keep theirs until they flush. */
void rift_flush_tlb(uintptr_t address);
void rift_flush_tlb_all(void);

/* ---- what the host tells ----------------------------------------------------------------------------------- */

#define RIFT_INFO_MAGIC 0x4f464e4954464952u /* "RIFTINFO", little-endian */
#define RIFT_INFO_VERSION 1

/* Filled in by the host before the first thread starts, when the payload has the symbol `rift_info`; the same
 * layout as rift_core/guest_info.py (a test compares them). Later versions only append. 0 where not known. */
struct rift_info {
    uint64_t magic;
    uint32_t version, bytes; /* bytes: of the struct that the payload has room for */
    uint64_t doorbell;       /* guest-virtual; before the host fills it in: what the payload was built for */
    uint64_t page_size;
    uint64_t tables_gva, tables_gpa, tables_size; /* page tables: a supervisor read-write mapping of them */
    uint64_t spare_gva, spare_gpa, spare_size;    /* pages for the guest's own use; spare_gva 0: not mapped */
    uint64_t counter_hz;                          /* of rift_counter() */
    uint32_t thread_count, reserved;              /* threads that the configuration names */
};
extern struct rift_info rift_info;

/* ---- threads and shared memory ----------------------------------------------------------------------------- */

/* Sequentially consistent, on integers and pointers of 1 to 8 bytes. The host takes part with its own. */
#define rift_atomic_load(object) __atomic_load_n((object), __ATOMIC_SEQ_CST)
#define rift_atomic_store(object, value) __atomic_store_n((object), (value), __ATOMIC_SEQ_CST)
#define rift_atomic_exchange(object, value) __atomic_exchange_n((object), (value), __ATOMIC_SEQ_CST)
#define rift_atomic_add(object, value) __atomic_add_fetch((object), (value), __ATOMIC_SEQ_CST)
#define rift_atomic_or(object, value) __atomic_or_fetch((object), (value), __ATOMIC_SEQ_CST)
#define rift_atomic_and(object, value) __atomic_and_fetch((object), (value), __ATOMIC_SEQ_CST)
/* `expected` points to the value that is wanted there, and is given the one that was. True: exchanged. */
#define rift_atomic_compare_exchange(object, expected, value) \
    __atomic_compare_exchange_n((object), (expected), (value), false, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)

/* First come, first served; it spins. All zero is an open mutex. */
struct rift_mutex {
    uint32_t next, serving;
};
void rift_mutex_lock(struct rift_mutex *mutex);
bool rift_mutex_try_lock(struct rift_mutex *mutex);
void rift_mutex_unlock(struct rift_mutex *mutex);

/* Holds `count` threads until all of them have come; may be used again at once. */
struct rift_barrier {
    uint32_t count, waiting, round;
};
#define RIFT_BARRIER(threads) {.count = (threads)}
/* True in exactly one of the threads. */
bool rift_barrier_wait(struct rift_barrier *barrier);

/* Bytes from one writer to one reader, either of which may be the host (rift_core.channel.Channel).
 * `written` and `read` only grow; `size` is a power of two, and the bytes follow the struct. */
struct rift_channel {
    uint64_t size;
    uint64_t written __attribute__((aligned(64)));
    uint64_t read __attribute__((aligned(64)));
    unsigned char bytes[] __attribute__((aligned(64)));
};
/* Defines a static channel whose symbol is `name`. `capacity`: a power of two. */
#define RIFT_CHANNEL(name, capacity)                                                                          \
    _Static_assert((capacity) > 0 && ((capacity) & ((capacity) - 1)) == 0, "capacity must be a power of two"); \
    union {                                                                                                   \
        struct rift_channel channel;                                                                          \
        unsigned char room[sizeof(struct rift_channel) + (capacity)];                                         \
    } name = {.channel = {.size = (capacity)}}
/* Neither waits: they move what fits, or is there, and return how many bytes that was. */
size_t rift_channel_write(struct rift_channel *channel, const void *bytes, size_t count);
size_t rift_channel_read(struct rift_channel *channel, void *bytes, size_t count);

/* ---- memory ------------------------------------------------------------------------------------------------ */

/* The compiler calls these on its own account. */
void *memcpy(void *restrict to, const void *restrict from, size_t bytes);
void *memmove(void *to, const void *from, size_t bytes);
void *memset(void *to, int byte, size_t bytes);
int memcmp(const void *first, const void *second, size_t bytes);
size_t strlen(const char *text);

/* ---- given by the ISA's header ----------------------------------------------------------------------------- *
 *
 * unsigned rift_privilege_level(void);       0: supervisor. x86-64: the ring.
 * bool rift_is_supervisor(void);
 * const char *rift_privilege_name(void);     "ring 0", "EL1", ...
 * uint64_t rift_page_table_root(void);       guest-physical; AArch64: of the lower half (supervisor mode)
 * void rift_set_page_table_root(uint64_t);   (supervisor mode)
 * void rift_set_vectors(const void *table);  the CPU's own form: an IDT, a vector table (supervisor mode)
 * void rift_disable_interrupts(void), rift_enable_interrupts(void);    (supervisor mode)
 * int64_t rift_hypercall(uint64_t number, uint64_t a1, ... a6);        (supervisor mode)
 * uint64_t rift_counter(void);               a counter that never goes back
 * void rift_relax(void);                     inside loops that wait for another thread
 * void rift_halt(void);                      waits for an interrupt; without any, the thread ends (supervisor
 *                                            mode). AArch64 may end the wait for no reason: wait in a loop
 * void rift_compiler_barrier(void), rift_memory_barrier(void), rift_read_barrier(void), rift_write_barrier(void)
 * int rift_divide(int, int);                 as the CPU does it: x86-64 raises RIFT_CAUSE_DIVIDE for a division by 0
 * void rift_undefined_instruction(void);     raises RIFT_CAUSE_UNDEFINED_INSTRUCTION; RIFT_UNDEFINED_BYTES long
 * void rift_device_store_8(uintptr_t, uint8_t) and _32, _64; uint64_t rift_device_load_64(uintptr_t)    one access to
 *                                            device memory, by an instruction that every hypervisor can answer
 * RIFT_HAS_PORTS                             1: also rift_out8() and so on
 */

#endif
