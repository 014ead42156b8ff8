/* vCPUs: creation, ownership, registers. The run loop stands in hvf_run.c, seats in hvf_process.c. */
#include "hvf_internal.h"

#include <errno.h>
#include <stdlib.h>

/* Frees it, however far its creation went; the control block may have other users. */
static void vcpu_free(struct rift_hvf_vcpu *vcpu) {
    rift_hvf_control_release(vcpu->control);
    free(vcpu->cpu.state);
    free(vcpu->saved);
    free(vcpu);
}

struct rift_hvf_vcpu *rift_hvf_vcpu_create(struct rift_hvf_vm *vm, uint32_t index, struct rift_error *error) {
    struct rift_hvf_vcpu *vcpu = calloc(1, sizeof(*vcpu));
    if (!vcpu) {
        rift_hvf_fail(error, ENOMEM, "calloc");
        return NULL;
    }
    vcpu->vm = vm;
    vcpu->binding = vm->binding;
    vcpu->cpu = (struct rift_hvf_cpu){.framework = vm->framework, .vm = vm, .index = index, .flags = vm->flags};
    vcpu->cpu.state = calloc(1, vm->binding->state_bytes);
    vcpu->control = rift_hvf_control_create(vm->framework);
    if (!vcpu->cpu.state || !vcpu->control) {
        rift_hvf_fail(error, ENOMEM, "calloc");
        goto failed;
    }
    rift_hvf_host_init(vcpu);
    if (rift_hvf_seat_take(vcpu, error))
        goto failed;
    pthread_mutex_lock(&vm->lock);
    vcpu->next = vm->vcpus;
    vm->vcpus = vcpu;
    vm->had_vcpu = 1;
    pthread_mutex_unlock(&vm->lock);
    return vcpu;

failed:
    vcpu_free(vcpu);
    return NULL;
}

static void unlink_vcpu(struct rift_hvf_vcpu *vcpu) {
    pthread_mutex_lock(&vcpu->vm->lock);
    for (struct rift_hvf_vcpu **at = &vcpu->vm->vcpus; *at; at = &(*at)->next)
        if (*at == vcpu) {
            *at = vcpu->next;
            break;
        }
    pthread_mutex_unlock(&vcpu->vm->lock);
}

int rift_hvf_vcpu_close(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    if (atomic_load(&vcpu->control->running))
        return rift_hvf_fail(error, EBUSY, "close");
    unlink_vcpu(vcpu);
    rift_hvf_seat_abandon(vcpu);
    vcpu_free(vcpu);
    return 0;
}

void rift_hvf_vcpu_forget(struct rift_hvf_vcpu *vcpu) {
    vcpu->control->seated = 0; /* its lock may have been held at the time of the fork */
    vcpu_free(vcpu);
}

int rift_hvf_vcpu_park(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    return rift_hvf_seat_leave(vcpu, error);
}

int rift_hvf_vcpu_adopt(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    return vcpu->seat ? 0 : rift_hvf_seat_take(vcpu, error);
}

struct rift_hvf_window *rift_hvf_vcpu_window(struct rift_hvf_vcpu *vcpu) {
    return &vcpu->window;
}

/* Before the binding is called: the vCPU has its thread's seat, and nothing is open. */
static int ready(struct rift_hvf_vcpu *vcpu, int writing, struct rift_error *error) {
    if (!vcpu->seat && rift_hvf_seat_take(vcpu, error))
        return -1;
    return rift_hvf_vcpu_settle(vcpu, writing, error);
}

int rift_hvf_vcpu_read(struct rift_hvf_vcpu *vcpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                       struct rift_error *error) {
    return ready(vcpu, 0, error) ? -1 : vcpu->binding->read_registers(&vcpu->cpu, ids, count, words, error);
}

int rift_hvf_vcpu_write(struct rift_hvf_vcpu *vcpu, const uint32_t *ids, uint32_t count, const uint64_t *words,
                        struct rift_error *error) {
    return ready(vcpu, 1, error) ? -1 : vcpu->binding->write_registers(&vcpu->cpu, ids, count, words, error);
}

int rift_hvf_vcpu_inject(struct rift_hvf_vcpu *vcpu, uint32_t vector, int has_code, uint32_t code,
                         struct rift_error *error) {
    if (!vcpu->seat && rift_hvf_seat_take(vcpu, error))
        return -1;
    if (vcpu->binding->inject_exception(&vcpu->cpu, vector, has_code, code, error))
        return -1;
    return rift_hvf_vcpu_settle(vcpu, 0, error);
}

int rift_hvf_vcpu_interrupt(struct rift_hvf_vcpu *vcpu, uint32_t vector, struct rift_error *error) {
    if (!vcpu->binding->inject_interrupt)
        return rift_hvf_fail(error, EOPNOTSUPP, "inject_interrupt");
    if (!vcpu->seat && rift_hvf_seat_take(vcpu, error))
        return -1;
    return vcpu->binding->inject_interrupt(&vcpu->cpu, vector, error);
}

int rift_hvf_vcpu_drop_events(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    if (ready(vcpu, 1, error))
        return -1;
    vcpu->has_pending = 0;
    vcpu->cpu.stepped = 0;
    vcpu->binding->drop_events(&vcpu->cpu);
    return 0;
}

int rift_hvf_vcpu_debug(struct rift_hvf_vcpu *vcpu, const struct rift_hvf_debug *debug, struct rift_error *error) {
    if (ready(vcpu, 1, error))
        return -1;
    vcpu->cpu.stepped = 0;
    return vcpu->binding->set_debug(&vcpu->cpu, debug, error);
}

int rift_hvf_vcpu_save(struct rift_hvf_vcpu *vcpu, void *buffer, size_t *bytes, struct rift_error *error) {
    return ready(vcpu, 1, error) ? -1 : vcpu->binding->save(&vcpu->cpu, buffer, bytes, error);
}

int rift_hvf_vcpu_restore(struct rift_hvf_vcpu *vcpu, const void *buffer, size_t bytes, struct rift_error *error) {
    if (ready(vcpu, 1, error))
        return -1;
    vcpu->has_pending = 0;
    vcpu->deferred = 0;
    vcpu->cpu.stepped = 0;
    return vcpu->binding->restore(&vcpu->cpu, buffer, bytes, error);
}
