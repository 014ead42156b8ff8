/* vCPUs: one engine each, made and kept up to date. */
#include "emulator_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static int control(struct unicorn *engine, int type, uint32_t value, struct rift_error *error) {
    int command = UNICORN_CONTROL_WRITE | 1 << UNICORN_CONTROL_ARGUMENTS_SHIFT | type;
    int status = unicorn.ctl(engine, command, value);
    return status ? rift_emulator_engine_error(error, status, "uc_ctl") : 0;
}

static int flush(struct unicorn *engine, int type, struct rift_error *error) {
    int status = unicorn.ctl(engine, UNICORN_CONTROL_WRITE | type);
    return status ? rift_emulator_engine_error(error, status, "uc_ctl") : 0;
}

int rift_emulator_engine_open(const struct rift_emulator_binding *binding, uint32_t code_buffer,
                              struct unicorn **engine, struct unicorn_context **context, struct rift_error *error) {
    int status = unicorn.open(binding->architecture, binding->mode, engine);
    if (status) {
        *engine = NULL;
        return rift_emulator_engine_error(error, status, "uc_open");
    }
    if (code_buffer && control(*engine, UNICORN_CONTROL_CODE_BUFFER, code_buffer, error))
        return -1;
    if (binding->cpu_model >= 0 && control(*engine, UNICORN_CONTROL_CPU_MODEL, (uint32_t)binding->cpu_model, error))
        return -1;
    if (control(*engine, UNICORN_CONTROL_USE_EXITS, 1, error)) /* none: emu_start's `until` means nothing then */
        return -1;
    status = unicorn.context_alloc(*engine, context);
    if (status) {
        *context = NULL;
        return rift_emulator_engine_error(error, status, "uc_context_alloc");
    }
    return 0;
}

void rift_emulator_engine_close(struct unicorn *engine, struct unicorn_context *context) {
    if (context)
        unicorn.context_free(context);
    if (engine)
        unicorn.close(engine);
}

static void destroy(struct rift_emulator_vcpu *vcpu) {
    vcpu->binding->release(&vcpu->cpu);
    rift_emulator_engine_close(vcpu->cpu.engine, vcpu->cpu.context);
    rift_emulator_code_release(vcpu);
    rift_emulator_devices_release(vcpu);
    rift_emulator_profile_release(vcpu);
    rift_emulator_control_release(vcpu->control);
    free(vcpu->mapped);
    free(vcpu);
}

struct rift_emulator_vcpu *rift_emulator_vcpu_create(struct rift_emulator_vm *vm, uint32_t index,
                                                     struct rift_error *error) {
    struct rift_emulator_vcpu *vcpu = calloc(1, sizeof(*vcpu));
    if (!vcpu) {
        rift_emulator_fail(error, ENOMEM, "calloc");
        return NULL;
    }
    vcpu->vm = vm;
    vcpu->binding = vm->binding;
    vcpu->cpu.index = index;
    vcpu->cpu.flags = vm->flags;
    vcpu->points.hit = -1;
    vcpu->control = rift_emulator_control_create(vm->turn);
    if (!vcpu->control)
        rift_emulator_fail(error, ENOMEM, "calloc");
    if (!vcpu->control ||
        rift_emulator_engine_open(vm->binding, vm->code_buffer, &vcpu->cpu.engine, &vcpu->cpu.context, error) ||
        rift_emulator_code_setup(vcpu, error) || rift_emulator_run_setup(vcpu, error) ||
        rift_emulator_devices_watch(vcpu, error) ||
        vm->binding->setup(&vcpu->cpu, error)) {
        destroy(vcpu);
        return NULL;
    }
    rift_emulator_host_init(vcpu);
    pthread_mutex_lock(&vm->lock);
    vcpu->next = vm->vcpus;
    vm->vcpus = vcpu;
    vm->created += 1;
    pthread_mutex_unlock(&vm->lock);
    return vcpu;
}

int rift_emulator_vcpu_close(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    if (!vcpu)
        return 0;
    if (atomic_load(&vcpu->control->inside))
        return rift_emulator_fail(error, EBUSY, "uc_close");
    struct rift_emulator_vm *vm = vcpu->vm;
    pthread_mutex_lock(&vm->lock);
    struct rift_emulator_vcpu **link = &vm->vcpus;
    while (*link != vcpu)
        link = &(*link)->next;
    *link = vcpu->next;
    pthread_mutex_unlock(&vm->lock);
    destroy(vcpu);
    return 0;
}

struct rift_emulator_window *rift_emulator_vcpu_window(struct rift_emulator_vcpu *vcpu) {
    return &vcpu->window;
}

/* -- what has changed ------------------------------------------------------------------------------- */

static int same(const struct rift_emulator_region *one, const struct rift_emulator_region *other) {
    return one->gpa == other->gpa && one->bytes == other->bytes && one->host == other->host &&
           one->writable == other->writable;
}

static int contains(const struct rift_emulator_region *regions, uint32_t count,
                    const struct rift_emulator_region *wanted) {
    for (uint32_t at = 0; at < count; ++at)
        if (same(&regions[at], wanted))
            return 1;
    return 0;
}

/* The engine's regions become those of `wanted`, which is what it has from then on. */
static int change_regions(struct rift_emulator_vcpu *vcpu, struct rift_emulator_region *wanted, uint32_t count,
                          struct rift_error *error) {
    struct unicorn *engine = vcpu->cpu.engine;
    for (uint32_t at = vcpu->mapped_count; at-- > 0;) {
        struct rift_emulator_region *region = &vcpu->mapped[at];
        if (contains(wanted, count, region))
            continue;
        int status = unicorn.mem_unmap(engine, region->gpa, region->bytes);
        if (status)
            return rift_emulator_engine_error(error, status, "uc_mem_unmap");
        memmove(region, region + 1, (vcpu->mapped_count - at - 1) * sizeof(*region));
        vcpu->mapped_count -= 1;
    }
    for (uint32_t at = 0; at < count; ++at) {
        struct rift_emulator_region *region = &wanted[at];
        if (contains(vcpu->mapped, vcpu->mapped_count, region))
            continue;
        rift_emulator_devices_clear(vcpu, region->gpa, region->bytes);
        uint32_t read_only = UNICORN_READ | UNICORN_EXECUTE, all = read_only | UNICORN_WRITE;
        int status = unicorn.mem_map_ptr(engine, region->gpa, region->bytes, all, region->host);
        if (status)
            return rift_emulator_engine_error(error, status, "uc_mem_map_ptr");
        /* Only a change makes the engine discard what an allowed store writes there. */
        status = region->writable ? 0 : unicorn.mem_protect(engine, region->gpa, region->bytes, read_only);
        if (status)
            return rift_emulator_engine_error(error, status, "uc_mem_protect");
        vcpu->mapped[vcpu->mapped_count] = *region;
        vcpu->mapped_count += 1;
    }
    return 0;
}

static int synchronise_regions(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    struct rift_emulator_vm *vm = vcpu->vm;
    pthread_mutex_lock(&vm->lock);
    uint32_t count = vm->region_count;
    unsigned generation = atomic_load(&vm->generation);
    struct rift_emulator_region *wanted = malloc((count + 1) * sizeof(*wanted));
    if (wanted && count)
        memcpy(wanted, vm->regions, count * sizeof(*wanted));
    pthread_mutex_unlock(&vm->lock);
    uint32_t room = vcpu->mapped_count > count ? vcpu->mapped_count : count;
    struct rift_emulator_region *mapped = realloc(vcpu->mapped, (room + 1) * sizeof(*mapped));
    if (mapped)
        vcpu->mapped = mapped;
    if (!wanted || !mapped) {
        free(wanted);
        return rift_emulator_fail(error, ENOMEM, "malloc");
    }
    int status = change_regions(vcpu, wanted, count, error);
    if (!status) {
        memcpy(vcpu->mapped, wanted, count * sizeof(*wanted)); /* the same, in order */
        status = rift_emulator_devices_watch(vcpu, error);
    }
    free(wanted);
    if (status)
        return -1;
    vcpu->generation = generation;
    return 0;
}

int rift_emulator_vcpu_synchronise(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    struct rift_emulator_vm *vm = vcpu->vm;
    unsigned flushes = atomic_load(&vm->flushes);
    int regions = vcpu->generation != atomic_load(&vm->generation);
    if (regions && synchronise_regions(vcpu, error))
        return -1;
    if (vcpu->devices.has_wanted_page && rift_emulator_devices_map(vcpu, error))
        return -1;
    /* Always after an unmap as well: the engine's own flush goes by guest-physical address. */
    if (regions || flushes != vcpu->flushes) {
        if (flush(vcpu->cpu.engine, UNICORN_CONTROL_FLUSH_TRANSLATIONS, error))
            return -1;
        vcpu->flushes = flushes;
    }
    if (vcpu->touched) {
        vcpu->touched = 0;
        rift_emulator_code_check(vcpu);
    }
    return 0;
}

/* -- registers and state ---------------------------------------------------------------------------- */

int rift_emulator_vcpu_read(struct rift_emulator_vcpu *vcpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                            struct rift_error *error) {
    if (rift_emulator_vcpu_settle(vcpu, 0, error))
        return -1;
    return vcpu->binding->read_registers(&vcpu->cpu, ids, count, words, error);
}

int rift_emulator_vcpu_write(struct rift_emulator_vcpu *vcpu, const uint32_t *ids, uint32_t count,
                             const uint64_t *words, struct rift_error *error) {
    const uint64_t *word = words;
    for (uint32_t at = 0; at < count; ++at) { /* nothing changes before all is known to fit */
        const struct rift_emulator_register *row = &vcpu->binding->registers[ids[at]];
        uint32_t size = (row->bits + 63) / 64, top = row->bits % 64;
        if (top && word[size - 1] >> top)
            return rift_emulator_fail(error, ERANGE, row->name);
        word += size;
    }
    if (rift_emulator_vcpu_settle(vcpu, 1, error))
        return -1;
    return vcpu->binding->write_registers(&vcpu->cpu, ids, count, words, error);
}

int rift_emulator_vcpu_inject(struct rift_emulator_vcpu *vcpu, uint32_t vector, int has_code, uint32_t code,
                              struct rift_error *error) {
    /* Of an access that is open it takes the place: the instruction has not happened. */
    vcpu->devices.count = vcpu->devices.next = vcpu->devices.unanswered = 0;
    vcpu->step_due = 0;
    return vcpu->binding->inject_exception(&vcpu->cpu, vector, has_code, code, error);
}

int rift_emulator_vcpu_interrupt(struct rift_emulator_vcpu *vcpu, uint32_t vector, struct rift_error *error) {
    return vcpu->binding->inject_interrupt(&vcpu->cpu, vector, error);
}

int rift_emulator_vcpu_drop_events(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    if (rift_emulator_vcpu_settle(vcpu, 1, error))
        return -1;
    vcpu->pending_outcome = RIFT_EMULATOR_NOTHING;
    vcpu->step_due = 0;
    vcpu->binding->drop_events(&vcpu->cpu);
    return 0;
}

const struct rift_emulator_binding *rift_emulator_builtin_binding(const char *isa) {
    const struct rift_emulator_binding *const bindings[] = {rift_emulator_x86_64(), rift_emulator_aarch64()};
    for (size_t at = 0; at < sizeof(bindings) / sizeof(bindings[0]); ++at)
        if (strcmp(bindings[at]->isa, isa) == 0)
            return bindings[at];
    return NULL;
}

int rift_emulator_binding_learn(const struct rift_emulator_binding *binding, struct rift_error *error) {
    return binding->learn(error);
}
