/* The emulator: virtual machines, memory, vCPUs and the run loop. Everything that Python calls stands here.
 *
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line.
 * A function that takes a struct rift_error returns 0 (or what its comment says), or -1 with the error filled in;
 * a negative code is -(the engine's own error number). Release functions accept NULL. */
#ifndef RIFT_EMULATOR_H
#define RIFT_EMULATOR_H

#include "emulator_binding.h"

struct rift_emulator_vm;
struct rift_emulator_vcpu;
struct rift_emulator_control;

/* -- the engine ------------------------------------------------------------------------------------- */

/* Opens the engine's shared library, once a process. */
int rift_emulator_load(const char *path, struct rift_error *error);

/* Its version, (major << 24 | minor << 16 | patch << 8 | extra), or 0 before it is loaded. */
uint32_t rift_emulator_engine_version(void);

/* The engine's text for the negative code of a struct rift_error, or "". */
const char *rift_emulator_engine_message(int code);

/* The binding for an ISA that is compiled in, or NULL. */
const struct rift_emulator_binding *rift_emulator_builtin_binding(const char *isa);

/* Whether `binding` has the version and size that this code was compiled with. Returns 1 or 0. */
int rift_emulator_binding_check(const struct rift_emulator_binding *binding);

/* Runs the binding's `learn`, which is remembered once it has succeeded. */
int rift_emulator_binding_learn(const struct rift_emulator_binding *binding, struct rift_error *error);

/* The version of native exit handlers, RIFT_ABI_VERSION. */
uint32_t rift_emulator_abi_version(void);

/* -- virtual machines ------------------------------------------------------------------------------- */

/* `code_buffer`: bytes for translated code in each vCPU. Returns NULL with the error filled in.
 * Freed by rift_emulator_vm_close. */
struct rift_emulator_vm *rift_emulator_vm_create(const struct rift_emulator_binding *binding, uint32_t flags,
                                                 uint32_t gpa_bits, uint32_t code_buffer, uint32_t slot_limit,
                                                 struct rift_error *error);

/* Frees it. Its vCPUs are closed already. */
void rift_emulator_vm_close(struct rift_emulator_vm *vm);

/* [gpa, gpa + bytes) is the host memory at `host`. All are multiples of 4 KiB (EINVAL), free of overlap (EEXIST).
 * Any thread; the caller serialises changes. Every vCPU has left the guest once and will see it. */
int rift_emulator_vm_map(struct rift_emulator_vm *vm, uint64_t gpa, void *host, uint64_t bytes, int writable,
                         struct rift_error *error);

/* Takes the region that starts at `gpa` from the guest (ENOENT: none does). Returns 0 when no native handler can
 * still hold a pointer into it, 1 when one may: the caller keeps the memory until rift_emulator_vm_quiet. */
int rift_emulator_vm_unmap(struct rift_emulator_vm *vm, uint64_t gpa, struct rift_error *error);

/* 1 if no native exit handler is running in any vCPU, else 0. */
int rift_emulator_vm_quiet(struct rift_emulator_vm *vm);

/* Makes every vCPU see page-table entries that the host has changed. */
void rift_emulator_vm_flush(struct rift_emulator_vm *vm);

/* Makes every vCPU look at its translated code before it goes on: the host has written instructions. */
void rift_emulator_vm_code_changed(struct rift_emulator_vm *vm);

/* Registers a native handler; before the first vCPU is created. As rift_dispatch_add. */
int rift_emulator_vm_install(struct rift_emulator_vm *vm, uint32_t kind, uint64_t first, uint64_t last,
                             uintptr_t handle, uintptr_t context, int fallback, struct rift_error *error);

/* Takes the machine's turn for the calling thread, so that no vCPU is in the guest; may be nested. */
void rift_emulator_vm_take(struct rift_emulator_vm *vm);
void rift_emulator_vm_give(struct rift_emulator_vm *vm);

/* -- vCPUs ------------------------------------------------------------------------------------------ */

/* What a run leaves behind: valid until the next call on the vCPU. */
struct rift_emulator_window {
    struct rift_exit exit;
    struct rift_error error;
};

enum rift_emulator_status {
    RIFT_EMULATOR_FAILED = -1,     /* window->error */
    RIFT_EMULATOR_EXIT = 0,        /* window->exit is for Python */
    RIFT_EMULATOR_INTERRUPTED = 1, /* a kick */
    RIFT_EMULATOR_STOPPED = 2      /* a native handler ended the thread; the status is window->exit.value */
};

/* A vCPU. Returns NULL with the error filled in. Freed by rift_emulator_vcpu_close. */
struct rift_emulator_vcpu *rift_emulator_vcpu_create(struct rift_emulator_vm *vm, uint32_t index,
                                                     struct rift_error *error);

/* Releases it; not while a thread is in rift_emulator_vcpu_run (EBUSY). */
int rift_emulator_vcpu_close(struct rift_emulator_vcpu *vcpu, struct rift_error *error);

struct rift_emulator_window *rift_emulator_vcpu_window(struct rift_emulator_vcpu *vcpu);

/* Runs the guest until an exit that no native handler takes. Owning thread only. If `answered`, `reply` answers
 * the open read of the exit before. Returns enum rift_emulator_status. */
int rift_emulator_vcpu_run(struct rift_emulator_vcpu *vcpu, int answered, uint64_t reply);

/* Registers by index into the binding's table; each takes (bits + 63) / 64 words. Owning thread only.
 * An open access is completed first, a read that nobody answered with 0. ERANGE: a value is too wide. */
int rift_emulator_vcpu_read(struct rift_emulator_vcpu *vcpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                            struct rift_error *error);
int rift_emulator_vcpu_write(struct rift_emulator_vcpu *vcpu, const uint32_t *ids, uint32_t count,
                             const uint64_t *words, struct rift_error *error);

/* As the functions of struct rift_emulator_binding. */
int rift_emulator_vcpu_inject(struct rift_emulator_vcpu *vcpu, uint32_t vector, int has_code, uint32_t code,
                              struct rift_error *error);
int rift_emulator_vcpu_interrupt(struct rift_emulator_vcpu *vcpu, uint32_t vector, struct rift_error *error);
int rift_emulator_vcpu_drop_events(struct rift_emulator_vcpu *vcpu, struct rift_error *error);

/* What a place in the guest's memory is watched for. */
enum rift_emulator_watch {
    RIFT_EMULATOR_EXECUTE = 0,
    RIFT_EMULATOR_WRITE = 1,
    RIFT_EMULATOR_READ = 2,
    RIFT_EMULATOR_READ_WRITE = 3
};

enum { RIFT_EMULATOR_DEBUG_POINTS = 32 };

struct rift_emulator_debug_point {
    uint64_t address;
    uint32_t size; /* bytes; of RIFT_EMULATOR_EXECUTE it means nothing */
    uint32_t kind; /* enum rift_emulator_watch */
};

/* What stops the guest with a DEBUG exit; replaces what was chosen before. ENOSPC: too many points. */
int rift_emulator_vcpu_debug(struct rift_emulator_vcpu *vcpu, int single_step, int software, uint32_t count,
                             const struct rift_emulator_debug_point *points, struct rift_error *error);

/* A run of instructions that the guest has executed from its start to its end, `count` times. */
struct rift_emulator_block {
    uint64_t pc, count;
    uint32_t bytes, reserved;
};

/* Counts executed code from now on, from zero, or no longer. */
int rift_emulator_vcpu_profile(struct rift_emulator_vcpu *vcpu, int on, struct rift_error *error);

/* Up to `room` blocks, in no order; returns how many there are. */
uint32_t rift_emulator_vcpu_blocks(struct rift_emulator_vcpu *vcpu, struct rift_emulator_block *blocks, uint32_t room);

/* -- the part of a vCPU that any thread may use, also after the vCPU is gone ------------------------- */

/* The vCPU's control block with one more reference, dropped by rift_emulator_control_release. */
struct rift_emulator_control *rift_emulator_vcpu_control(struct rift_emulator_vcpu *vcpu);
void rift_emulator_control_release(struct rift_emulator_control *control);

/* Makes the run in progress, or the next one, return RIFT_EMULATOR_INTERRUPTED. Never lost. */
void rift_emulator_control_kick(struct rift_emulator_control *control);

/* Exits so far, those served natively included. */
uint64_t rift_emulator_control_exits(const struct rift_emulator_control *control);

#endif
