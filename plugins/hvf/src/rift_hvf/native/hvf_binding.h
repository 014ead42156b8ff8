/* What joins Hypervisor.framework with one instruction set: a struct of function pointers that the rest calls.
 *
 * There are two, chosen by what the opened framework exports. The file is also part of the cdef: declarations
 * only, and a preprocessor line stands alone on its line.
 *
 * Every function that takes a struct rift_hvf_cpu is called on the thread whose hypervisor vCPU it is, with
 * the interpreter lock released. A function that takes a struct rift_error returns 0 (or what its comment
 * says), or -1 with the error filled in: code is an hv_return_t (negative) or an errno (positive), operation
 * a static string, the call's name as in the headers. */
#ifndef RIFT_HVF_BINDING_H
#define RIFT_HVF_BINDING_H

#include "rift_abi.h"

/* Raised by any change of this header. A binding of another version is refused. */
#define RIFT_HVF_BINDING_VERSION 1

struct rift_hvf_framework;
struct rift_hvf_vm;

enum rift_hvf_flag {
    RIFT_HVF_SYSTEM_REGISTER_EXITS = 1 /* accesses to unknown system registers are wanted as exits */
};

/* What the hypervisor of this machine allows. */
struct rift_hvf_limits {
    uint32_t page;      /* granularity of guest-physical memory, bytes */
    uint32_t gpa_bits, most_gpa_bits; /* of guest-physical addresses: as a rule, and if asked for */
    uint32_t max_vcpus;
    uint64_t features[4]; /* the binding's own: see its comment */
};

/* A vCPU, as its binding sees it. */
struct rift_hvf_cpu {
    const struct rift_hvf_framework *framework;
    struct rift_hvf_vm *vm;
    uint64_t id;     /* the framework's number; means something while the vCPU has a seat */
    void *exit_info; /* where the framework describes exits, or NULL */
    uint32_t index;  /* its number in Rift */
    uint32_t flags;  /* enum rift_hvf_flag */
    uint32_t open;   /* 1: the last exit waits for `complete`; set by `decode`, cleared by `complete` */
    uint32_t stepped; /* 1: an instruction was carried out here while the host steps: a DEBUG exit comes next ... */
    uint64_t step_address; /* ... with this program counter */
    uint64_t wait_ns;      /* of RIFT_HVF_WAIT */
    void *state; /* the binding's own, zeroed at creation; keeps what the framework does not */
};

/* A register by its name in the manual, lower case. A register takes (bits + 63) / 64 words in a batch. */
struct rift_hvf_register {
    const char *name;
    uint32_t bits;
    uint16_t group; /* the binding's own */
    uint32_t place; /* the binding's own */
};

enum rift_hvf_decoded {
    RIFT_HVF_DISPATCH = 0, /* *exit is filled in */
    RIFT_HVF_REENTER = 1,  /* nothing that anybody needs to see: enter again */
    RIFT_HVF_WAIT = 2      /* the guest sleeps: enter again after cpu->wait_ns, unless there is a kick before */
};

/* What a place in the guest's memory is watched for. */
enum rift_hvf_watch { RIFT_HVF_EXECUTE = 0, RIFT_HVF_WRITE = 1, RIFT_HVF_READ = 2, RIFT_HVF_READ_WRITE = 3 };

struct rift_hvf_debug_point {
    uint64_t address;
    uint32_t size; /* bytes: 1, 2, 4 or 8; of RIFT_HVF_EXECUTE it means nothing */
    uint32_t kind; /* enum rift_hvf_watch */
};

/* What stops the guest with a DEBUG exit. */
struct rift_hvf_debug {
    uint32_t single_step;
    uint32_t software; /* the ISA's breakpoint instruction */
    uint32_t count;
    uint32_t reserved;
    const struct rift_hvf_debug_point *points;
};

struct rift_hvf_binding {
    uint32_t version; /* RIFT_HVF_BINDING_VERSION */
    uint32_t bytes;   /* sizeof(struct rift_hvf_binding) */
    const char *isa;
    const struct rift_hvf_register *registers; /* ids are indices of this table */
    uint32_t register_count;
    uint32_t state_bytes; /* of rift_hvf_cpu.state */

    int (*limits)(const struct rift_hvf_framework *framework, struct rift_hvf_limits *limits, struct rift_error *error);
    /* hv_vm_create, with `gpa_bits` of guest-physical addresses. */
    int (*vm_create)(const struct rift_hvf_framework *framework, uint32_t gpa_bits, struct rift_error *error);

    /* A hypervisor vCPU of the calling thread: sets cpu->id and cpu->exit_info, and the state that a guest can
     * start from, with whatever cpu->state says (debugging, for one). */
    int (*vcpu_create)(struct rift_hvf_cpu *cpu, struct rift_error *error);
    /* On the thread that made it. Returns an hv_return_t. */
    int (*vcpu_destroy)(const struct rift_hvf_framework *framework, uint64_t id);
    /* Makes it leave the guest. Any thread. */
    void (*vcpu_exit)(const struct rift_hvf_framework *framework, uint64_t id);

    /* Into the guest, once. */
    int (*enter)(struct rift_hvf_cpu *cpu, struct rift_error *error);
    /* Translate the exit that `enter` gave. Returns enum rift_hvf_decoded, or -1. */
    int (*decode)(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error);
    /* Finish the open access with `value`, its answer if it is a read. Returns 0; or 1 when the instruction
     * goes on with another access, which *exit then describes (cpu->open says whether that waits as well). */
    int (*complete)(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit, struct rift_error *error);

    /* Called with nothing open, or from a native handler in the middle of an access. */
    int (*read_registers)(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                          struct rift_error *error);
    int (*write_registers)(struct rift_hvf_cpu *cpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                           struct rift_error *error);

    /* Deliver an exception at the next entry. With an open access it belongs to the instruction that makes
     * the access, which then is not open any more. */
    int (*inject_exception)(struct rift_hvf_cpu *cpu, uint32_t vector, int has_code, uint32_t code,
                            struct rift_error *error);
    /* Deliver an external interrupt as soon as the guest takes one. EBUSY: another one waits; EINVAL: no such vector.
     * NULL: there is no way to. */
    int (*inject_interrupt)(struct rift_hvf_cpu *cpu, uint32_t vector, struct rift_error *error);
    /* Forget what these two have left to be delivered. Nothing is open. */
    void (*drop_events)(struct rift_hvf_cpu *cpu);
    /* Replaces what was chosen before. ENOSPC: more points than the CPU has; EOPNOTSUPP: something that it cannot
     * watch or do; EINVAL: a size or alignment that it cannot watch. */
    int (*set_debug)(struct rift_hvf_cpu *cpu, const struct rift_hvf_debug *debug, struct rift_error *error);

    /* The whole state. `save` with *bytes too small sets the size that is needed and fails with ENOSPC. */
    int (*save)(struct rift_hvf_cpu *cpu, void *buffer, size_t *bytes, struct rift_error *error);
    int (*restore)(struct rift_hvf_cpu *cpu, const void *buffer, size_t bytes, struct rift_error *error);

    /* Forget cached translations of the guest's own page tables. */
    int (*flush)(struct rift_hvf_cpu *cpu, struct rift_error *error);
};

#endif
