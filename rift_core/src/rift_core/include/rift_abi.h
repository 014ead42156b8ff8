/* The contract between compiled pieces of Rift: exits, native exit handlers, errors.
 * The only copy; each plugin that compiles against it has a symbolic link to this file.
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line. */
#ifndef RIFT_ABI_H
#define RIFT_ABI_H

#include <stddef.h>
#include <stdint.h>

/* Raised by any change of meaning or layout. Vm.install refuses handlers of another version. */
#define RIFT_ABI_VERSION 1

/* Why the guest stopped. The same numbers as rift_core.exits.ExitKind (a test compares them).
 *
 * kind             address              size   value             info
 * HALT             guest PC if known    0      0                 -
 * PORT_IO          port                 1,2,4  written value     -          one access (batches are split)
 * MMIO             guest-physical       1..8   written value     -          one access
 * HYPERCALL        number               0      0                 arguments 0..5    in the registers named below
 * SYSTEM_REGISTER  MSR / sysreg id      8      written value     -
 * DEBUG            guest PC             0      0                 [0] what: 1 step, 2 software, 3 hardware, 4 watchpoint; [1] data address; [2] raw (DR6, ESR)
 * MEMORY_FAULT     guest-physical       bytes  0                 [0] raw flags
 * SHUTDOWN         -                    -      1 if lost         -          x86-64 triple fault; lost: the hypervisor has reset the vCPU, registers and all
 * POWER_OFF RESET  -                    -      0                 -          PSCI and the like
 * INTERRUPTED      -                    -      0                 -          kick or signal; never dispatched
 * FAIL_ENTRY       guest PC if known    n      suberror          instruction bytes, n of them, packed little-endian in info
 * USER_CALL        number               0      0                 arguments 0..5    made by an ISA's companion
 * UNKNOWN          -                    -      0                 -          see raw_reason
 *
 * The registers of a HYPERCALL are those of rift_hypercall() in the ISA's guest runtime, on every backend:
 * x86-64 (VMCALL, VMMCALL; in ring 0 only): RAX; RDI, RSI, RDX, R10, R8, R9, the same as of a USER_CALL; AArch64 (HVC,
 * SMC): X0; X1 to X6, as the SMC calling convention has it. The answer comes into RAX, X0. */
enum rift_exit_kind {
    RIFT_EXIT_HALT = 1,
    RIFT_EXIT_PORT_IO = 2,
    RIFT_EXIT_MMIO = 3,
    RIFT_EXIT_HYPERCALL = 4,
    RIFT_EXIT_SYSTEM_REGISTER = 5,
    RIFT_EXIT_DEBUG = 6,
    RIFT_EXIT_MEMORY_FAULT = 7,
    RIFT_EXIT_SHUTDOWN = 8,
    RIFT_EXIT_POWER_OFF = 9,
    RIFT_EXIT_RESET = 10,
    RIFT_EXIT_UNKNOWN = 11,
    RIFT_EXIT_INTERRUPTED = 12,
    RIFT_EXIT_FAIL_ENTRY = 13,
    RIFT_EXIT_USER_CALL = 14,
    RIFT_EXIT_KINDS = 15 /* one more than the last */
};

struct rift_exit {
    uint32_t kind, size;
    uint64_t address, value;
    uint32_t is_write, raw_reason; /* raw_reason: the hypervisor's own number */
    uint64_t info[6];
};

/* A failed call: its errno or return code, and its name as in the manual (a static string). */
struct rift_error {
    int code;
    const char *operation;
};

/* A native handler's verdict; anything negative is -errno and ends the thread with an error. */
enum rift_verdict {
    RIFT_PASS = 0,   /* not mine: the next handler, then Python */
    RIFT_RESUME = 1, /* back into the guest; the answer to a read or call stands in exit->value */
    RIFT_STOP = 2    /* end the thread; the status stands in exit->value */
};

/* What a native handler may use of its host, valid during the call only.
 * Guest memory is hostile and shared: read once, copy, then check. */
struct rift_host {
    uint32_t version;      /* RIFT_ABI_VERSION */
    uint32_t bytes;        /* sizeof(struct rift_host) */
    uint32_t thread_index; /* the vCPU's index */
    uint32_t reserved;
    /* Bytes of guest-physical memory [gpa, gpa + bytes) if they lie in one region that allows the
     * access, else NULL. */
    void *(*memory)(const struct rift_host *host, uint64_t gpa, uint64_t bytes, int writable);
    /* The id of a register of the calling vCPU by the manual's lower-case name, or -1. */
    int (*register_id)(const struct rift_host *host, const char *name);
    /* Registers of up to 64 bits. 0, or -errno. */
    int (*read_register)(const struct rift_host *host, int id, uint64_t *value);
    int (*write_register)(const struct rift_host *host, int id, uint64_t value);
    /* Sleeps until *word differs from expected (0), the CLOCK_MONOTONIC deadline in ns (-ETIMEDOUT;
     * 0: none) or a kick (-EINTR: return RIFT_PASS or -EINTR soon). The only way a handler may block. */
    int (*wait)(const struct rift_host *host, const uint32_t *word, uint32_t expected, uint64_t deadline);
};

typedef int rift_exit_fn(void *context, const struct rift_host *host, struct rift_exit *exit);

#endif
