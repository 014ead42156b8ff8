/* KVM: virtual machines, memory slots, vCPUs and the run loop. Everything that Python calls stands here.
 *
 * The file is also the cdef: declarations only, and a preprocessor line stands alone on its line.
 * A function that takes a struct rift_error returns 0 (or what its comment says), or -1 with the error
 * filled in. Release functions accept NULL. */
#ifndef RIFT_KVM_H
#define RIFT_KVM_H

#include "kvm_binding.h"

struct rift_kvm_vm;
struct rift_kvm_vcpu;
struct rift_kvm_control;

/* -- the device ------------------------------------------------------------------------------------- */

/* The binding for the ISA of this machine's own CPU. */
const struct rift_kvm_binding *rift_kvm_host_binding(void);

/* Whether `binding` has the version and size that this code was compiled with. Returns 1 or 0. */
int rift_kvm_binding_check(const struct rift_kvm_binding *binding);

/* The version of native exit handlers, RIFT_ABI_VERSION. */
uint32_t rift_kvm_abi_version(void);

/* Opens the device. Returns a descriptor, or -1 (operation: "open"). */
int rift_kvm_device_open(const char *path, struct rift_error *error);

/* KVM_GET_API_VERSION: the version, or -1. */
int rift_kvm_device_version(int device, struct rift_error *error);

/* KVM_CHECK_EXTENSION on the device: its value (0: absent), or -1. */
int rift_kvm_device_extension(int device, long capability, struct rift_error *error);

/* close(2). */
void rift_kvm_device_close(int device);

/* The process-wide description that `binding` wants, at most *bytes into `buffer`; sets *bytes. */
int rift_kvm_describe(int device, const struct rift_kvm_binding *binding, rift_kvm_ioctl_fn *ioctl, void *buffer,
                      size_t *bytes, struct rift_error *error);

/* Gives `signal` an empty handler, without SA_RESTART. Fails with EBUSY if somebody else handles or ignores it. */
int rift_kvm_signal_install(int signal, struct rift_error *error);

/* -- virtual machines ------------------------------------------------------------------------------- */

/* A VM on a device of its own. `ioctl` NULL: the system's. `description` must outlive the VM.
 * Returns NULL with the error filled in; nothing is left open then. Freed by rift_kvm_vm_close. */
struct rift_kvm_vm *rift_kvm_vm_create(const char *path, const struct rift_kvm_binding *binding, uint32_t flags,
                                       uint32_t gpa_bits, rift_kvm_ioctl_fn *ioctl, const void *description,
                                       size_t description_bytes, struct rift_error *error);

/* Closes and frees it. Its vCPUs are closed already. */
void rift_kvm_vm_close(struct rift_kvm_vm *vm);

/* Waits for the vCPU that is made ahead: before a fork. */
void rift_kvm_vm_settle(struct rift_kvm_vm *vm);

/* Closes the descriptors only: for a forked child, where any other call would reach the parent's VM. */
void rift_kvm_vm_forget(struct rift_kvm_vm *vm);

/* KVM_CHECK_EXTENSION on the VM: its value, or -1. */
int rift_kvm_vm_extension(struct rift_kvm_vm *vm, long capability, struct rift_error *error);

/* KVM_SET_USER_MEMORY_REGION: [gpa, gpa + bytes) is the host memory at `host`. All are multiples of the page
 * size (EINVAL), free of overlap (EEXIST). Any thread; the caller serialises changes. */
int rift_kvm_vm_map(struct rift_kvm_vm *vm, uint64_t gpa, void *host, uint64_t bytes, int writable,
                    struct rift_error *error);

/* Takes the slot that starts at `gpa` from the guest (ENOENT: none does). Returns 0 when no native handler can
 * still hold a pointer into it, 1 when one may: the caller keeps the memory until rift_kvm_vm_quiet. */
int rift_kvm_vm_unmap(struct rift_kvm_vm *vm, uint64_t gpa, struct rift_error *error);

/* 1 if no native exit handler is running in any vCPU, else 0. */
int rift_kvm_vm_quiet(struct rift_kvm_vm *vm);

/* Makes vCPUs see instructions that the host has written to [gpa, gpa + bytes); what is in no slot is passed over. */
void rift_kvm_vm_code_changed(struct rift_kvm_vm *vm, uint64_t gpa, uint64_t bytes);
/* Makes every vCPU see page-table entries that the host has changed: adds and deletes a slot, which flushes
 * on every kind of KVM. */
int rift_kvm_vm_flush(struct rift_kvm_vm *vm, struct rift_error *error);

/* Registers a native handler; before the first vCPU is created. As rift_dispatch_add. */
int rift_kvm_vm_install(struct rift_kvm_vm *vm, uint32_t kind, uint64_t first, uint64_t last, uintptr_t handle,
                        uintptr_t context, int fallback, struct rift_error *error);

/* -- vCPUs ------------------------------------------------------------------------------------------ */

/* What a run leaves behind: valid until the next call on the vCPU. */
struct rift_kvm_window {
    struct rift_exit exit;
    struct rift_error error;
};

enum rift_kvm_status {
    RIFT_KVM_FAILED = -1,    /* window->error */
    RIFT_KVM_EXIT = 0,       /* window->exit is for Python */
    RIFT_KVM_INTERRUPTED = 1, /* a kick, or a signal on the main thread */
    RIFT_KVM_STOPPED = 2     /* a native handler ended the thread; the status is window->exit.value */
};

/* A vCPU owned by the calling thread. `on_main`: that is the thread which runs Python's signal handlers.
 * `signal` is installed. Returns NULL with the error filled in. Freed by rift_kvm_vcpu_close. */
struct rift_kvm_vcpu *rift_kvm_vcpu_create(struct rift_kvm_vm *vm, uint32_t index, int on_main, int signal,
                                           struct rift_error *error);

/* Releases it; not while a thread is in rift_kvm_vcpu_run (EBUSY). */
int rift_kvm_vcpu_close(struct rift_kvm_vcpu *vcpu, struct rift_error *error);

/* Closes the descriptor and unmaps kvm_run only: for a forked child. */
void rift_kvm_vcpu_forget(struct rift_kvm_vcpu *vcpu);

/* The calling thread gives the vCPU up, or becomes its owner. */
void rift_kvm_vcpu_park(struct rift_kvm_vcpu *vcpu);
void rift_kvm_vcpu_adopt(struct rift_kvm_vcpu *vcpu, int on_main);

struct rift_kvm_window *rift_kvm_vcpu_window(struct rift_kvm_vcpu *vcpu);

/* Runs the guest until an exit that no native handler takes. Owning thread only. If `answered`, `reply` answers
 * the open read of the exit before. Returns enum rift_kvm_status. */
int rift_kvm_vcpu_run(struct rift_kvm_vcpu *vcpu, int answered, uint64_t reply);

/* Registers by index into the binding's table; each takes (bits + 63) / 64 words. Owning thread only.
 * An open access is completed first, a read that nobody answered with 0. ERANGE: a value is too wide. */
int rift_kvm_vcpu_read(struct rift_kvm_vcpu *vcpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error);
int rift_kvm_vcpu_write(struct rift_kvm_vcpu *vcpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error);

/* As the functions of struct rift_kvm_binding, with open accesses completed first. Owning thread only. */
int rift_kvm_vcpu_inject(struct rift_kvm_vcpu *vcpu, uint32_t vector, int has_code, uint32_t code,
                         struct rift_error *error);
int rift_kvm_vcpu_drop_events(struct rift_kvm_vcpu *vcpu, struct rift_error *error);
int rift_kvm_vcpu_debug(struct rift_kvm_vcpu *vcpu, const struct rift_kvm_debug *debug, struct rift_error *error);
int rift_kvm_vcpu_save(struct rift_kvm_vcpu *vcpu, void *buffer, size_t *bytes, struct rift_error *error);
int rift_kvm_vcpu_restore(struct rift_kvm_vcpu *vcpu, const void *buffer, size_t bytes, struct rift_error *error);

/* -- the part of a vCPU that any thread may use, also after the vCPU is gone ------------------------- */

/* The vCPU's control block with one more reference, dropped by rift_kvm_control_release. */
struct rift_kvm_control *rift_kvm_vcpu_control(struct rift_kvm_vcpu *vcpu);
void rift_kvm_control_release(struct rift_kvm_control *control);

/* Makes the run in progress, or the next one, return RIFT_KVM_INTERRUPTED. Never lost. */
void rift_kvm_control_kick(struct rift_kvm_control *control);

/* Exits so far, those served natively included. */
uint64_t rift_kvm_control_exits(const struct rift_kvm_control *control);

#endif
