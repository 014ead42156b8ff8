/* x86-64's part of rift_guest.h. References are to the Intel SDM. */
#ifndef RIFT_GUEST_ISA_H
#define RIFT_GUEST_ISA_H

#include <stdbool.h>
#include <stdint.h>

/* The registers of the interrupted code, as vectors.S pushes them; `error` is 0 where the CPU has none.
 * From `vector` on it is what the host finds at RSP when it is told of an exception (SDM 3A, figure 6-9). */
struct rift_frame {
    uint64_t r15, r14, r13, r12, r11, r10, r9, r8;
    uint64_t rbp, rdi, rsi, rdx, rcx, rbx, rax;
    uint64_t vector, error;
    uint64_t rip, cs, rflags, rsp, ss;
};

/* SDM 3A, table 6-1. */
enum rift_vector {
    RIFT_VECTOR_DIVIDE_ERROR = 0,
    RIFT_VECTOR_DEBUG = 1,
    RIFT_VECTOR_NMI = 2,
    RIFT_VECTOR_BREAKPOINT = 3,
    RIFT_VECTOR_OVERFLOW = 4,
    RIFT_VECTOR_BOUND_RANGE = 5,
    RIFT_VECTOR_INVALID_OPCODE = 6,
    RIFT_VECTOR_DEVICE_NOT_AVAILABLE = 7,
    RIFT_VECTOR_DOUBLE_FAULT = 8,
    RIFT_VECTOR_INVALID_TSS = 10,
    RIFT_VECTOR_SEGMENT_NOT_PRESENT = 11,
    RIFT_VECTOR_STACK_FAULT = 12,
    RIFT_VECTOR_GENERAL_PROTECTION = 13,
    RIFT_VECTOR_PAGE_FAULT = 14,
    RIFT_VECTOR_X87 = 16,
    RIFT_VECTOR_ALIGNMENT_CHECK = 17,
    RIFT_VECTOR_MACHINE_CHECK = 18,
    RIFT_VECTOR_SIMD = 19,
    RIFT_VECTOR_CONTROL_PROTECTION = 21,
};

/* Error code of a page fault (SDM 3A, 4.7). */
enum {
    RIFT_PAGE_FAULT_PROTECTION = 1 << 0, /* the page is there, the access is not allowed */
    RIFT_PAGE_FAULT_WRITE = 1 << 1,
    RIFT_PAGE_FAULT_USER = 1 << 2,
    RIFT_PAGE_FAULT_RESERVED = 1 << 3, /* a reserved bit is set in an entry */
    RIFT_PAGE_FAULT_FETCH = 1 << 4,
};

/* Bits of a page-table entry (SDM 3A, 4.5). */
#define RIFT_PTE_PRESENT (1ull << 0)
#define RIFT_PTE_WRITE (1ull << 1)
#define RIFT_PTE_USER (1ull << 2)
#define RIFT_PTE_ACCESSED (1ull << 5)
#define RIFT_PTE_DIRTY (1ull << 6)
#define RIFT_PTE_LARGE (1ull << 7) /* in a directory: maps a large page */
#define RIFT_PTE_NO_EXECUTE (1ull << 63)
#define RIFT_PTE_ADDRESS 0x000ffffffffff000ull

#define RIFT_UNDEFINED_BYTES 2 /* length of what rift_undefined_instruction() executes */

/* The current privilege level: the low bits of CS (SDM 3A, 5.5). */
static inline unsigned rift_privilege_level(void) {
    unsigned cs;
    __asm__("mov %%cs, %0" : "=r"(cs));
    return cs & 3;
}

static inline bool rift_is_supervisor(void) {
    return rift_privilege_level() == 0;
}

static inline const char *rift_privilege_name(void) {
    static const char names[4][7] = {"ring 0", "ring 1", "ring 2", "ring 3"};
    return names[rift_privilege_level()];
}

#define RIFT_READ_REGISTER(name)                             \
    static inline uint64_t rift_read_##name(void) {          \
        uint64_t value;                                      \
        __asm__ volatile("mov %%" #name ", %0" : "=r"(value)); \
        return value;                                        \
    }
RIFT_READ_REGISTER(cr0) /* rift_read_cr0() and so on: supervisor mode only */
RIFT_READ_REGISTER(cr2)
RIFT_READ_REGISTER(cr3)
RIFT_READ_REGISTER(cr4)

static inline uint16_t rift_read_cs(void) {
    unsigned cs;
    __asm__("mov %%cs, %0" : "=r"(cs));
    return (uint16_t)cs;
}

/* A model-specific register (supervisor mode). One that does not exist is a #GP. */
static inline uint64_t rift_read_msr(uint32_t number) {
    uint32_t low, high;
    __asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(number));
    return (uint64_t)high << 32 | low;
}

static inline uint64_t rift_page_table_root(void) {
    return rift_read_cr3() & RIFT_PTE_ADDRESS;
}

static inline void rift_set_page_table_root(uint64_t root) {
    __asm__ volatile("mov %0, %%cr3" ::"r"(root) : "memory");
}

/* An IDT of 256 gates. */
static inline void rift_set_vectors(const void *table) {
    const struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) place = {256 * 16 - 1, (uintptr_t)table};
    __asm__ volatile("lidt %0" ::"m"(place) : "memory");
}

static inline void rift_disable_interrupts(void) {
    __asm__ volatile("cli" ::: "memory");
}
static inline void rift_enable_interrupts(void) {
    __asm__ volatile("sti" ::: "memory");
}

/* The time-stamp counter, not ordered with the instructions around it. */
static inline uint64_t rift_counter(void) {
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high));
    return (uint64_t)high << 32 | low;
}

static inline void rift_relax(void) {
    __asm__ volatile("pause" ::: "memory");
}

static inline void rift_halt(void) {
    __asm__ volatile("hlt" ::: "memory");
}

static inline void rift_compiler_barrier(void) {
    __asm__ volatile("" ::: "memory");
}

/* A locked instruction orders all write-back memory (SDM 3A, 8.2.5) and needs no SSE2, as MFENCE does. */
static inline void rift_memory_barrier(void) {
    __asm__ volatile("lock orl $0, (%%rsp)" ::: "memory", "cc");
}

/* Loads are not reordered with loads, nor stores with stores (SDM 3A, 8.2.2): only the compiler is held. */
static inline void rift_read_barrier(void) {
    rift_compiler_barrier();
}
static inline void rift_write_barrier(void) {
    rift_compiler_barrier();
}

/* A division as the CPU does it; by zero it is #DE. */
static inline int rift_divide(int dividend, int divisor) {
    int quotient, remainder;
    __asm__ volatile("cltd\n\tidivl %3" : "=&a"(quotient), "=&d"(remainder) : "0"(dividend), "r"(divisor) : "cc");
    return quotient;
}

static inline void rift_undefined_instruction(void) {
    __asm__ volatile("ud2" ::: "memory");
}

/* Single accesses by single instructions, whatever the compiler would make of a volatile object. */
static inline void rift_device_store_8(uintptr_t address, uint8_t value) {
    *(volatile uint8_t *)address = value;
}
static inline void rift_device_store_32(uintptr_t address, uint32_t value) {
    *(volatile uint32_t *)address = value;
}
static inline void rift_device_store_64(uintptr_t address, uint64_t value) {
    *(volatile uint64_t *)address = value;
}
static inline uint64_t rift_device_load_64(uintptr_t address) {
    return *(volatile uint64_t *)address;
}

/* VMCALL: number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9, result in RAX. What a hypervisor does with it, and
 * whether the host hears of it, differs. */
static inline int64_t rift_hypercall(uint64_t number, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5,
                                     uint64_t a6) {
    register uint64_t r10 __asm__("r10") = a4;
    register uint64_t r8 __asm__("r8") = a5;
    register uint64_t r9 __asm__("r9") = a6;
    int64_t result;
    __asm__ volatile("vmcall"
                     : "=a"(result)
                     : "a"(number), "D"(a1), "S"(a2), "d"(a3), "r"(r10), "r"(r8), "r"(r9)
                     : "memory", "cc");
    return result;
}

#define RIFT_HAS_PORTS 1

static inline void rift_out8(uint16_t port, uint8_t value) {
    __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port));
}
static inline void rift_out32(uint16_t port, uint32_t value) {
    __asm__ volatile("outl %0, %1" ::"a"(value), "Nd"(port));
}
static inline uint8_t rift_in8(uint16_t port) {
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}
static inline uint32_t rift_in32(uint16_t port) {
    uint32_t value;
    __asm__ volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

/* SYSCALL as such: number in RAX, arguments in RDI, RSI, RDX, R10, R8, R9, result in RAX; the CPU itself
 * overwrites RCX and R11. User mode only; rift_user_call() works everywhere. */
static inline int64_t rift_system_call(uint64_t number, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
                                       uint64_t a4, uint64_t a5) {
    register uint64_t r10 __asm__("r10") = a3;
    register uint64_t r8 __asm__("r8") = a4;
    register uint64_t r9 __asm__("r9") = a5;
    int64_t result;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a0), "S"(a1), "d"(a2), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory", "cc");
    return result;
}

#endif
