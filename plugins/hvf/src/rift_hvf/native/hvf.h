/* Hypervisor.framework: the virtual machine, its memory, vCPUs and the run loop. Everything that Python calls
 * stands here.
 *
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line.
 * A function that takes a struct rift_error returns 0 (or what its comment says), or -1 with the error
 * filled in (see hvf_binding.h for its codes). Release functions accept NULL. */
#ifndef RIFT_HVF_H
#define RIFT_HVF_H

#include "hvf_binding.h"

struct rift_hvf_vcpu;
struct rift_hvf_control;

/* -- the framework ---------------------------------------------------------------------------------- */

/* Opens the framework at `path` and looks its functions up; it stays open until the process ends. Returns NULL
 * with `message` (of `bytes` bytes) saying why. */
struct rift_hvf_framework *rift_hvf_framework_open(const char *path, char *message, size_t bytes);

/* The binding for the ISA that the framework is for. */
const struct rift_hvf_binding *rift_hvf_framework_binding(const struct rift_hvf_framework *framework);

/* The two bindings; the functions take no framework, so that machines can be planned anywhere. */
const struct rift_hvf_binding *rift_hvf_binding_x86_64(void);
const struct rift_hvf_binding *rift_hvf_binding_aarch64(void);

/* Whether the framework has a function, by its name; for reports. */
int rift_hvf_framework_has(const struct rift_hvf_framework *framework, const char *name);

/* Whether `binding` has the version and size that this code was compiled with. Returns 1 or 0. */
int rift_hvf_binding_check(const struct rift_hvf_binding *binding);

int rift_hvf_limits(const struct rift_hvf_framework *framework, struct rift_hvf_limits *limits,
                    struct rift_error *error);

/* The version of native exit handlers, RIFT_ABI_VERSION. */
uint32_t rift_hvf_abi_version(void);

/* A forked child has neither the VM nor vCPUs of its parent: forget them all, without a call to the framework. */
void rift_hvf_forget_all(void);

/* -- the virtual machine ---------------------------------------------------------------------------- */

/* The process's VM. EBUSY: there is one already. Returns NULL with the error filled in; nothing is left
 * then. Freed by rift_hvf_vm_close. */
struct rift_hvf_vm *rift_hvf_vm_create(struct rift_hvf_framework *framework, uint32_t flags, uint32_t page,
                                       uint32_t gpa_bits, struct rift_error *error);

/* Unmaps what is mapped and frees it. Its vCPUs are closed already. */
void rift_hvf_vm_close(struct rift_hvf_vm *vm);

/* hv_vm_map: [gpa, gpa + bytes) is the host memory at `host`, with `permissions` as in HV_MEMORY_*. All are
 * multiples of the page size (EINVAL), free of overlap (EEXIST). Any thread; the caller serialises changes. */
int rift_hvf_vm_map(struct rift_hvf_vm *vm, uint64_t gpa, void *host, uint64_t bytes, uint32_t permissions,
                    struct rift_error *error);

/* hv_vm_unmap of exactly the region that starts at `gpa` (ENOENT: none does). Returns 0 when no vCPU can
 * still hold a pointer into it, 1 when one may: the caller keeps the memory until rift_hvf_vm_quiet. */
int rift_hvf_vm_unmap(struct rift_hvf_vm *vm, uint64_t gpa, struct rift_error *error);

/* 1 if no vCPU holds a pointer into guest memory, else 0. */
int rift_hvf_vm_quiet(struct rift_hvf_vm *vm);

/* Makes every vCPU see page-table entries that the host has changed: each flushes before it enters the guest
 * again. Returns when none is in the guest without having done so. */
void rift_hvf_vm_flush(struct rift_hvf_vm *vm);

/* Makes every vCPU fetch the instructions that the host has written to [gpa, gpa + bytes). */
void rift_hvf_vm_code_changed(struct rift_hvf_vm *vm, uint64_t gpa, uint64_t bytes);

/* Registers a native handler; before the first vCPU is created. As rift_dispatch_add. */
int rift_hvf_vm_install(struct rift_hvf_vm *vm, uint32_t kind, uint64_t first, uint64_t last, uintptr_t handle,
                        uintptr_t context, int fallback, struct rift_error *error);

/* -- vCPUs ------------------------------------------------------------------------------------------ */

/* What a run leaves behind: valid until the next call on the vCPU. */
struct rift_hvf_window {
    struct rift_exit exit;
    struct rift_error error;
};

enum rift_hvf_status {
    RIFT_HVF_FAILED = -1,     /* window->error */
    RIFT_HVF_EXIT = 0,        /* window->exit is for Python */
    RIFT_HVF_INTERRUPTED = 1, /* a kick */
    RIFT_HVF_STOPPED = 2      /* a native handler ended the thread; the status is window->exit.value */
};

/* A vCPU that the calling thread owns. Returns NULL with the error filled in. Freed by rift_hvf_vcpu_close. */
struct rift_hvf_vcpu *rift_hvf_vcpu_create(struct rift_hvf_vm *vm, uint32_t index, struct rift_error *error);

/* Releases it; not while a thread is in rift_hvf_vcpu_run (EBUSY). Any thread: where it is not the owner, the
 * hypervisor's vCPU goes when the owner ends, or makes another. */
int rift_hvf_vcpu_close(struct rift_hvf_vcpu *vcpu, struct rift_error *error);

/* Frees a vCPU without a call to the framework: for a forked child. */
void rift_hvf_vcpu_forget(struct rift_hvf_vcpu *vcpu);

/* Park: the owner's hypervisor vCPU is destroyed, its state kept. Adopt: the calling thread becomes the owner. */
int rift_hvf_vcpu_park(struct rift_hvf_vcpu *vcpu, struct rift_error *error);
int rift_hvf_vcpu_adopt(struct rift_hvf_vcpu *vcpu, struct rift_error *error);

struct rift_hvf_window *rift_hvf_vcpu_window(struct rift_hvf_vcpu *vcpu);

/* Runs the guest until an exit that no native handler takes. Owning thread only. If `answered`, `reply` answers
 * the open read of the exit before. Returns enum rift_hvf_status. */
int rift_hvf_vcpu_run(struct rift_hvf_vcpu *vcpu, int answered, uint64_t reply);

/* Registers by index into the binding's table; each takes (bits + 63) / 64 words. Owning thread only.
 * An open access is completed first, a read that nobody answered with 0. ERANGE: a value is too wide. */
int rift_hvf_vcpu_read(struct rift_hvf_vcpu *vcpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error);
int rift_hvf_vcpu_write(struct rift_hvf_vcpu *vcpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error);

/* As the functions of struct rift_hvf_binding. Owning thread only. */
int rift_hvf_vcpu_inject(struct rift_hvf_vcpu *vcpu, uint32_t vector, int has_code, uint32_t code,
                         struct rift_error *error);
int rift_hvf_vcpu_interrupt(struct rift_hvf_vcpu *vcpu, uint32_t vector, struct rift_error *error);
int rift_hvf_vcpu_drop_events(struct rift_hvf_vcpu *vcpu, struct rift_error *error);
int rift_hvf_vcpu_debug(struct rift_hvf_vcpu *vcpu, const struct rift_hvf_debug *debug, struct rift_error *error);
int rift_hvf_vcpu_save(struct rift_hvf_vcpu *vcpu, void *buffer, size_t *bytes, struct rift_error *error);
int rift_hvf_vcpu_restore(struct rift_hvf_vcpu *vcpu, const void *buffer, size_t bytes, struct rift_error *error);

/* -- the part of a vCPU that any thread may use, also after the vCPU is gone ------------------------- */

/* The vCPU's control block with one more reference, dropped by rift_hvf_control_release. */
struct rift_hvf_control *rift_hvf_vcpu_control(struct rift_hvf_vcpu *vcpu);
void rift_hvf_control_release(struct rift_hvf_control *control);

/* Makes the run in progress, or the next one, return RIFT_HVF_INTERRUPTED. Never lost. */
void rift_hvf_control_kick(struct rift_hvf_control *control);

/* Exits so far, those served natively included. */
uint64_t rift_hvf_control_exits(const struct rift_hvf_control *control);

#endif
