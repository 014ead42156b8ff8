/* vCPUs: creation, ownership, registers. The run loop stands in kvm_run.c. */
#include "kvm_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Undoes creation, however far it went; the control block may have other users. */
void rift_kvm_vcpu_destroy(struct rift_kvm_vcpu *vcpu) {
    if (vcpu->control)
        rift_kvm_control_detach(vcpu->control);
    if (vcpu->binding)
        vcpu->binding->vcpu_release(&vcpu->cpu);
    if (vcpu->cpu.run)
        munmap(vcpu->cpu.run, vcpu->vm->machine.run_bytes);
    if (vcpu->cpu.fd >= 0)
        close(vcpu->cpu.fd);
    rift_kvm_control_release(vcpu->control);
    free(vcpu);
}

/* A number that KVM has not seen in this VM: it frees none before the VM itself. The index where possible,
 * since guests read it as their APIC id. */
static uint32_t choose_id(struct rift_kvm_vm *vm, uint32_t index) {
    uint32_t id = index >= vm->next_id ? index : vm->next_id;
    vm->next_id = id + 1;
    return id;
}

static void interrupt(struct rift_kvm_cpu *cpu) {
    struct rift_kvm_vcpu *vcpu = (struct rift_kvm_vcpu *)((uintptr_t)cpu - offsetof(struct rift_kvm_vcpu, cpu));
    rift_kvm_control_interrupt(vcpu->control);
}

struct rift_kvm_vcpu *rift_kvm_vcpu_make(struct rift_kvm_vm *vm, uint32_t index, struct rift_error *error) {
    struct rift_kvm_vcpu *vcpu = calloc(1, sizeof(*vcpu));
    if (!vcpu) {
        rift_kvm_fail(error, ENOMEM, "calloc");
        return NULL;
    }
    vcpu->vm = vm;
    vcpu->cpu = (struct rift_kvm_cpu){.machine = &vm->machine, .fd = -1, .index = index, .interrupt = interrupt};
    vcpu->cpu.id = choose_id(vm, index);
    vcpu->cpu.fd = vm->machine.ioctl(vm->machine.fd, KVM_CREATE_VCPU, (void *)(uintptr_t)vcpu->cpu.id);
    if (vcpu->cpu.fd < 0) {
        rift_kvm_fail(error, errno, "KVM_CREATE_VCPU");
        goto failed;
    }
    void *run = mmap(NULL, vm->machine.run_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, vcpu->cpu.fd, 0);
    if (run == MAP_FAILED) {
        rift_kvm_fail(error, errno, "mmap");
        goto failed;
    }
    vcpu->cpu.run = run;
    vcpu->control = rift_kvm_control_create(&vcpu->cpu, vm->binding);
    if (!vcpu->control) {
        rift_kvm_fail(error, ENOMEM, "calloc");
        goto failed;
    }
    vcpu->binding = vm->binding;
    if (vcpu->binding->vcpu_setup(&vcpu->cpu, error))
        goto failed;
    return vcpu;

failed:
    rift_kvm_vcpu_destroy(vcpu);
    return NULL;
}

struct rift_kvm_vcpu *rift_kvm_vcpu_create(struct rift_kvm_vm *vm, uint32_t index, int on_main, int signal,
                                           struct rift_error *error) {
    struct rift_kvm_vcpu *vcpu = NULL;
    vm->running = 1;
    rift_kvm_ahead_wait(vm); /* which also chooses a number for KVM */
    if (index || !rift_kvm_ahead_take(vm, &vcpu, error))
        vcpu = rift_kvm_vcpu_make(vm, index, error);
    if (!vcpu)
        return NULL;
    vcpu->on_main = on_main;
    vcpu->control->signal = signal;
    rift_kvm_host_init(vcpu);
    rift_kvm_control_own(vcpu->control);
    pthread_mutex_lock(&vm->lock);
    vcpu->next = vm->vcpus;
    vm->vcpus = vcpu;
    pthread_mutex_unlock(&vm->lock);
    return vcpu;
}

int rift_kvm_vcpu_close(struct rift_kvm_vcpu *vcpu, struct rift_error *error) {
    if (atomic_load(&vcpu->control->inside))
        return rift_kvm_fail(error, EBUSY, "close");
    struct rift_kvm_vm *vm = vcpu->vm;
    pthread_mutex_lock(&vm->lock);
    for (struct rift_kvm_vcpu **at = &vm->vcpus; *at; at = &(*at)->next)
        if (*at == vcpu) {
            *at = vcpu->next;
            break;
        }
    pthread_mutex_unlock(&vm->lock);
    rift_kvm_vcpu_destroy(vcpu);
    return 0;
}

void rift_kvm_vcpu_forget(struct rift_kvm_vcpu *vcpu) {
    if (vcpu->binding && vcpu->binding->vcpu_forget)
        vcpu->binding->vcpu_forget(&vcpu->cpu);
    if (vcpu->cpu.run)
        munmap(vcpu->cpu.run, vcpu->vm->machine.run_bytes);
    if (vcpu->cpu.fd >= 0)
        close(vcpu->cpu.fd);
    vcpu->cpu.run = NULL;
    vcpu->cpu.fd = -1;
    vcpu->control->cpu = NULL; /* its lock may have been held at the time of the fork */
}

void rift_kvm_vcpu_park(struct rift_kvm_vcpu *vcpu) {
    rift_kvm_control_disown(vcpu->control);
}

void rift_kvm_vcpu_adopt(struct rift_kvm_vcpu *vcpu, int on_main) {
    vcpu->on_main = on_main;
    rift_kvm_control_own(vcpu->control);
}

struct rift_kvm_window *rift_kvm_vcpu_window(struct rift_kvm_vcpu *vcpu) {
    return &vcpu->window;
}

int rift_kvm_vcpu_read(struct rift_kvm_vcpu *vcpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error) {
    if (rift_kvm_vcpu_settle(vcpu, 0, error))
        return -1;
    return vcpu->binding->read_registers(&vcpu->cpu, ids, count, words, error);
}

int rift_kvm_vcpu_write(struct rift_kvm_vcpu *vcpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error) {
    if (rift_kvm_vcpu_settle(vcpu, 1, error))
        return -1;
    return vcpu->binding->write_registers(&vcpu->cpu, ids, count, words, error);
}

int rift_kvm_vcpu_inject(struct rift_kvm_vcpu *vcpu, uint32_t vector, int has_code, uint32_t code,
                         struct rift_error *error) {
    int status = vcpu->binding->inject_exception(&vcpu->cpu, vector, has_code, code, error);
    if (status != RIFT_KVM_COMPLETE_FIRST)
        return status < 0 ? -1 : 0;
    if (rift_kvm_vcpu_settle(vcpu, 1, error))
        return -1;
    return vcpu->binding->inject_exception(&vcpu->cpu, vector, has_code, code, error) < 0 ? -1 : 0;
}

int rift_kvm_vcpu_drop_events(struct rift_kvm_vcpu *vcpu, struct rift_error *error) {
    if (rift_kvm_vcpu_settle(vcpu, 1, error))
        return -1;
    vcpu->has_pending = 0;
    return vcpu->binding->drop_events(&vcpu->cpu, error);
}

int rift_kvm_vcpu_debug(struct rift_kvm_vcpu *vcpu, const struct rift_kvm_debug *debug, struct rift_error *error) {
    if (rift_kvm_vcpu_settle(vcpu, 1, error))
        return -1;
    return vcpu->binding->set_debug(&vcpu->cpu, debug, error);
}

int rift_kvm_vcpu_save(struct rift_kvm_vcpu *vcpu, void *buffer, size_t *bytes, struct rift_error *error) {
    if (rift_kvm_vcpu_settle(vcpu, 1, error))
        return -1;
    return vcpu->binding->save(&vcpu->cpu, buffer, bytes, error);
}

int rift_kvm_vcpu_restore(struct rift_kvm_vcpu *vcpu, const void *buffer, size_t bytes, struct rift_error *error) {
    if (rift_kvm_vcpu_settle(vcpu, 1, error))
        return -1;
    vcpu->has_pending = 0;
    vcpu->deferred = 0;
    return vcpu->binding->restore(&vcpu->cpu, buffer, bytes, error);
}
