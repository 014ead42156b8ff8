/* AArch64's part of rift_guest.h. References are to the Arm ARM. */
#ifndef RIFT_GUEST_ISA_H
#define RIFT_GUEST_ISA_H

#include <stdbool.h>
#include <stdint.h>

/* The registers of the interrupted code, as vectors.S stores them. `sp` is SP_EL0 for code in EL0 and EL1t; for code
 * in EL1h it is the stack that the frame lies on, and what a handler writes there has no effect. */
struct rift_frame {
    uint64_t x[31], sp;
    uint64_t pc, pstate;            /* ELR_EL1, SPSR_EL1 */
    uint64_t vector, error;         /* enum rift_vector, ESR_EL1.ISS */
    uint64_t fault_address;         /* FAR_EL1 */
    uint64_t syndrome, mode, report; /* the vectors' own */
};

/* Exception classes (ESR_EL1.EC), and numbers beyond them for exceptions that have none. */
enum rift_vector {
    RIFT_VECTOR_UNDEFINED = 0x00,
    RIFT_VECTOR_WFX = 0x01,
    RIFT_VECTOR_FLOATING_POINT_TRAP = 0x07,
    RIFT_VECTOR_ILLEGAL_STATE = 0x0e,
    RIFT_VECTOR_SYSTEM_CALL = 0x15,
    RIFT_VECTOR_SYSTEM_REGISTER = 0x18,
    RIFT_VECTOR_INSTRUCTION_ABORT_EL0 = 0x20,
    RIFT_VECTOR_INSTRUCTION_ABORT = 0x21,
    RIFT_VECTOR_PC_ALIGNMENT = 0x22,
    RIFT_VECTOR_DATA_ABORT_EL0 = 0x24,
    RIFT_VECTOR_DATA_ABORT = 0x25,
    RIFT_VECTOR_SP_ALIGNMENT = 0x26,
    RIFT_VECTOR_FLOATING_POINT = 0x2c,
    RIFT_VECTOR_SERROR = 0x2f,
    RIFT_VECTOR_BREAKPOINT = 0x3c,
    RIFT_VECTOR_IRQ = 0x40,
    RIFT_VECTOR_FIQ = 0x41,
};

/* Syndrome of an abort (ESR_EL1.ISS). */
#define RIFT_ABORT_STATUS 0x3fu /* DFSC, IFSC */
#define RIFT_ABORT_WRITE (1u << 6)
#define RIFT_ABORT_CACHE_MAINTENANCE (1u << 8)

/* Bits of a descriptor ("Translation table descriptor formats"). */
#define RIFT_PTE_VALID (1ull << 0)
#define RIFT_PTE_TABLE (1ull << 1) /* a table; in the last level, a page */
#define RIFT_PTE_USER (1ull << 6)
#define RIFT_PTE_READ_ONLY (1ull << 7)
#define RIFT_PTE_INNER_SHAREABLE (3ull << 8)
#define RIFT_PTE_ACCESSED (1ull << 10)
#define RIFT_PTE_NOT_GLOBAL (1ull << 11)
#define RIFT_PTE_WRITABLE_CLEAN (1ull << 51) /* DBM: the CPU itself clears RIFT_PTE_READ_ONLY */
#define RIFT_PTE_CONTIGUOUS (1ull << 52)
#define RIFT_PTE_NO_SUPERVISOR_EXECUTE (1ull << 53) /* PXN */
#define RIFT_PTE_NO_USER_EXECUTE (1ull << 54)       /* UXN */
#define RIFT_PTE_ADDRESS 0x0000fffffffff000ull

#define RIFT_UNDEFINED_BYTES 4 /* length of what rift_undefined_instruction() executes */

#define RIFT_HAS_PORTS 0

/* rift_read_ttbr0_el1() and so on. Those of EL1 are for supervisor mode only. */
#define RIFT_READ_REGISTER(name)                               \
    static inline uint64_t rift_read_##name(void) {            \
        uint64_t value;                                        \
        __asm__ volatile("mrs %0, " #name : "=r"(value));      \
        return value;                                          \
    }
#define RIFT_WRITE_REGISTER(name)                                          \
    static inline void rift_write_##name(uint64_t value) {                 \
        __asm__ volatile("msr " #name ", %0\n\tisb" ::"r"(value) : "memory"); \
    }
RIFT_READ_REGISTER(currentel)
RIFT_READ_REGISTER(sctlr_el1)
RIFT_READ_REGISTER(ttbr0_el1)
RIFT_READ_REGISTER(ttbr1_el1)
RIFT_READ_REGISTER(tcr_el1)
RIFT_READ_REGISTER(mair_el1)
RIFT_READ_REGISTER(vbar_el1)
RIFT_READ_REGISTER(cntfrq_el0)
RIFT_READ_REGISTER(cntvct_el0)
RIFT_READ_REGISTER(tpidrro_el0)
RIFT_WRITE_REGISTER(ttbr0_el1)
RIFT_WRITE_REGISTER(vbar_el1)

/* EL0 cannot read its own exception level. The host, and the vectors, keep it in a register that EL0 can only read:
 * 1 in EL1. A payload that enters EL0 by itself writes 0 there first. */
static inline bool rift_is_supervisor(void) {
    uint64_t value;
    __asm__("mrs %0, tpidrro_el0" : "=r"(value));
    return value & 1;
}

static inline unsigned rift_privilege_level(void) {
    return rift_is_supervisor() ? 0 : 1;
}

static inline const char *rift_privilege_name(void) {
    return rift_is_supervisor() ? "EL1" : "EL0";
}

static inline uint64_t rift_page_table_root(void) {
    return rift_read_ttbr0_el1() & RIFT_PTE_ADDRESS;
}

static inline void rift_set_page_table_root(uint64_t root) {
    rift_write_ttbr0_el1(root);
}

static inline void rift_set_vectors(const void *table) {
    rift_write_vbar_el1((uintptr_t)table);
}

static inline void rift_disable_interrupts(void) {
    __asm__ volatile("msr daifset, #7" ::: "memory");
}
static inline void rift_enable_interrupts(void) {
    __asm__ volatile("msr daifclr, #3" ::: "memory");
}

/* The virtual counter, not ordered with the instructions around it. */
static inline uint64_t rift_counter(void) {
    return rift_read_cntvct_el0();
}

static inline void rift_relax(void) {
    __asm__ volatile("yield" ::: "memory");
}

static inline void rift_halt(void) {
    __asm__ volatile("wfi" ::: "memory");
}

static inline void rift_compiler_barrier(void) {
    __asm__ volatile("" ::: "memory");
}
static inline void rift_memory_barrier(void) {
    __asm__ volatile("dmb ish" ::: "memory");
}
static inline void rift_read_barrier(void) {
    __asm__ volatile("dmb ishld" ::: "memory");
}
static inline void rift_write_barrier(void) {
    __asm__ volatile("dmb ishst" ::: "memory");
}

/* A division as the CPU does it; by zero it is 0. */
static inline int rift_divide(int dividend, int divisor) {
    int quotient;
    __asm__ volatile("sdiv %w0, %w1, %w2" : "=r"(quotient) : "r"(dividend), "r"(divisor));
    return quotient;
}

static inline void rift_undefined_instruction(void) {
    __asm__ volatile(".inst 0" ::: "memory"); /* udf #0 */
}

/* Single accesses by single instructions without write-back: the only ones that a hypervisor is told all about. */
static inline void rift_device_store_8(uintptr_t address, uint8_t value) {
    __asm__ volatile("strb %w0, [%1]" ::"r"(value), "r"(address) : "memory");
}
static inline void rift_device_store_32(uintptr_t address, uint32_t value) {
    __asm__ volatile("str %w0, [%1]" ::"r"(value), "r"(address) : "memory");
}
static inline void rift_device_store_64(uintptr_t address, uint64_t value) {
    __asm__ volatile("str %0, [%1]" ::"r"(value), "r"(address) : "memory");
}
static inline uint64_t rift_device_load_64(uintptr_t address) {
    uint64_t value;
    __asm__ volatile("ldr %0, [%1]" : "=r"(value) : "r"(address) : "memory");
    return value;
}

/* A hypercall (SMC calling convention): function in X0, arguments in X1 to X6, result in X0. Supervisor mode only. */
static inline int64_t rift_hypercall(uint64_t function, uint64_t a1, uint64_t a2, uint64_t a3, uint64_t a4, uint64_t a5,
                                     uint64_t a6) {
    register uint64_t x0 __asm__("x0") = function;
    register uint64_t x1 __asm__("x1") = a1;
    register uint64_t x2 __asm__("x2") = a2;
    register uint64_t x3 __asm__("x3") = a3;
    register uint64_t x4 __asm__("x4") = a4;
    register uint64_t x5 __asm__("x5") = a5;
    register uint64_t x6 __asm__("x6") = a6;
    __asm__ volatile("hvc #0"
                     : "+r"(x0), "+r"(x1), "+r"(x2), "+r"(x3), "+r"(x4), "+r"(x5), "+r"(x6)
                     :
                     : "x7", "x8", "x9", "x10", "x11", "x12", "x13", "x14", "x15", "x16", "x17", "memory");
    return (int64_t)x0;
}

/* PSCI (Arm DEN 0022) functions for rift_hypercall(). */
#define RIFT_PSCI_VERSION 0x84000000u
#define RIFT_PSCI_SYSTEM_OFF 0x84000008u
#define RIFT_PSCI_SYSTEM_RESET 0x84000009u

/* SVC as such: number in X8, arguments in X0 to X5, result in X0; nothing else changes. User mode only;
 * rift_user_call() works everywhere. */
static inline int64_t rift_system_call(uint64_t number, uint64_t a0, uint64_t a1, uint64_t a2, uint64_t a3,
                                       uint64_t a4, uint64_t a5) {
    register uint64_t x8 __asm__("x8") = number;
    register uint64_t x0 __asm__("x0") = a0;
    register uint64_t x1 __asm__("x1") = a1;
    register uint64_t x2 __asm__("x2") = a2;
    register uint64_t x3 __asm__("x3") = a3;
    register uint64_t x4 __asm__("x4") = a4;
    register uint64_t x5 __asm__("x5") = a5;
    __asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    return (int64_t)x0;
}

#endif
