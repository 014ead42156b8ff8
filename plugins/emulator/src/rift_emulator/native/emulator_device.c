/* Accesses to guest-physical addresses without memory: MMIO exits.
 *
 * The first touch of a page of a hole stops the engine, and the page becomes a device page: one that the engine
 * knows as a device, without permissions, so that each access is first asked about here. If a native handler
 * answers, the access is carried out in place and the engine never stops. If not, the engine is made to abandon the
 * instruction, the exit goes to Python, and afterwards the instruction is run again, as a step of its own, with the
 * answers collected so far: that is right for read-modify-write instructions, string instructions and wide ones.
 *
 * The engine carries an unaligned access out in pieces; they belong to the access that was asked about. */
#include "emulator_internal.h"

#include <errno.h>
#include <stdlib.h>

/* Whether [gpa, gpa + size) is a piece of the access that is carried out. */
static int is_piece(const struct rift_emulator_devices *devices, uint64_t gpa, uint32_t size, int is_write) {
    return devices->now.size && (int)devices->now.is_write == is_write && gpa >= devices->now_first &&
           gpa + size <= devices->now_end;
}

static uint64_t cut(uint64_t value, uint32_t size) {
    return size < 8 ? value & ((UINT64_C(1) << 8 * size) - 1) : value;
}

static int same_place(const struct rift_emulator_access *one, const struct rift_emulator_access *other) {
    return one->gpa == other->gpa && one->size == other->size && one->is_write == other->is_write;
}

/* Whether the access that a native handler served last belongs to the same instruction: a read-modify-write reads
 * and then writes, at one program counter; in a loop the next thing there would be a read again. */
static int continues(struct rift_emulator_vcpu *vcpu, const struct rift_emulator_access *access) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    return devices->has_last && !devices->last.is_write && access->is_write &&
           devices->last_pc == vcpu->binding->program_counter(&vcpu->cpu);
}

static void log_access(struct rift_emulator_vcpu *vcpu, const struct rift_emulator_access *access) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    if (!devices->count && continues(vcpu, access)) {
        devices->log[0] = devices->last;
        devices->count = 1;
    }
    devices->has_last = 0;
    if (devices->count < RIFT_EMULATOR_ACCESSES) {
        devices->log[devices->count] = *access;
        devices->count += 1;
    }
    devices->next = devices->count;
}

/* The engine may carry the access out. What is not aligned it reads as two aligned neighbours, and writes byte by
 * byte. */
static int allow(struct rift_emulator_devices *devices, const struct rift_emulator_access *access) {
    uint64_t page = access->gpa & ~(PAGE - 1);
    uint64_t first = access->gpa & ~UINT64_C(7);
    devices->now = *access;
    devices->now_first = first;
    devices->now_end = first + 16 < page + PAGE ? first + 16 : page + PAGE;
    return 1;
}

/* An access that nobody has seen. Returns 1 if the engine may carry it out, 0 if it must abandon the instruction. */
static int serve(struct rift_emulator_vcpu *vcpu, struct rift_emulator_access *access) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    struct rift_exit exit = {
        .kind = RIFT_EXIT_MMIO,
        .size = access->size,
        .address = access->gpa,
        .value = access->is_write ? access->value : 0,
        .is_write = access->is_write,
    };
    if (vcpu->cpu.stepping & RIFT_EMULATOR_STEP_ACCESS && devices->count >= RIFT_EMULATOR_ACCESSES)
        return allow(devices, access); /* no instruction makes as many: reads give 0, writes go nowhere */
    int verdict = rift_emulator_vcpu_offer(vcpu, &exit);
    if (verdict == RIFT_RESUME) {
        if (!access->is_write)
            access->value = exit.value;
        if (vcpu->precise) {
            vcpu->precise = 0;
            log_access(vcpu, access);
            rift_emulator_vcpu_leave(vcpu, RIFT_EMULATOR_AGAIN);
            return 0;
        }
        if (vcpu->cpu.stepping & RIFT_EMULATOR_STEP_ACCESS) {
            log_access(vcpu, access);
        } else {
            devices->last = *access;
            devices->last_pc = vcpu->binding->program_counter(&vcpu->cpu);
            devices->has_last = 1;
        }
        return allow(devices, access);
    }
    vcpu->precise = 0;
    if (vcpu->outcome != RIFT_EMULATOR_WAITED) {
        if (!access->is_write)
            access->value = 0;
        log_access(vcpu, access);
        devices->unanswered = !access->is_write;
    }
    rift_emulator_vcpu_leave(vcpu, vcpu->outcome);
    return 0;
}

/* Has it been seen before the instruction was abandoned, or is it new? Returns as `ask`. */
static int recall_or_serve(struct rift_emulator_vcpu *vcpu, struct rift_emulator_access *access) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    if (devices->next < devices->count) {
        struct rift_emulator_access *known = &devices->log[devices->next];
        if (same_place(known, access)) {
            devices->next += 1;
            return allow(devices, known);
        }
        devices->count = devices->next; /* the guest's tables have changed meanwhile: what follows is new */
    }
    return serve(vcpu, access);
}

/* An access to a device page. Returns 1 if the engine may carry it out, 0 if it must abandon the instruction. */
static int ask(struct rift_emulator_vcpu *vcpu, uint64_t gpa, uint32_t size, uint64_t value, int is_write) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    if (vcpu->cpu.leaving)
        return 0;
    struct rift_emulator_access access = {.gpa = gpa, .size = size, .is_write = (uint32_t)is_write};
    uint32_t room = (uint32_t)(PAGE - gpa % PAGE), rest = devices->rest, pieces = 0;
    devices->rest = devices->pieces = 0;
    if (rest && room == PAGE) { /* the first piece of the rest of the access before */
        access.size = rest;
        value = devices->rest_value;
        pieces = rest - 1;
    } else if (size > room) { /* the rest lies in another page, which may be anywhere */
        access.size = pieces = room;
        devices->rest = size - room;
        devices->rest_value = value >> 8 * room;
    } else if (gpa & (size - 1)) {
        pieces = size;
    }
    access.value = cut(value, access.size);
    int allowed = recall_or_serve(vcpu, &access);
    devices->pieces = allowed && is_write ? pieces : 0;
    return allowed;
}

static bool protected_hook(struct unicorn *engine, int type, uint64_t gpa, int size, int64_t value, void *context) {
    struct rift_emulator_vcpu *vcpu = context;
    (void)engine;
    if (type == UNICORN_ACCESS_FETCH_PROTECTED) {
        if (!vcpu->cpu.leaving) {
            vcpu->window.exit = (struct rift_exit){.kind = RIFT_EXIT_MEMORY_FAULT, .address = gpa, .size = 1};
            rift_emulator_vcpu_leave(vcpu, RIFT_EMULATOR_HAS_EXIT);
        }
        return false;
    }
    int is_write = type == UNICORN_ACCESS_WRITE_PROTECTED;
    /* Only a store comes here in pieces, byte by byte; the first of them is the access itself. */
    if (is_write && size == 1 && vcpu->devices.pieces && is_piece(&vcpu->devices, gpa, 1, 1)) {
        vcpu->devices.pieces -= 1;
        return !vcpu->cpu.leaving;
    }
    return ask(vcpu, gpa, (uint32_t)size, (uint64_t)value, is_write);
}

static bool unmapped_hook(struct unicorn *engine, int type, uint64_t gpa, int size, int64_t value, void *context) {
    struct rift_emulator_vcpu *vcpu = context;
    (void)engine;
    (void)size;
    (void)value;
    if (vcpu->cpu.leaving)
        return false;
    if (type == UNICORN_ACCESS_FETCH_UNMAPPED) {
        vcpu->window.exit = (struct rift_exit){.kind = RIFT_EXIT_MEMORY_FAULT, .address = gpa, .size = 1};
        rift_emulator_vcpu_leave(vcpu, RIFT_EMULATOR_HAS_EXIT);
        return false;
    }
    vcpu->devices.wanted_page = gpa & ~(PAGE - 1);
    vcpu->devices.has_wanted_page = 1;
    vcpu->devices.next = 0;
    rift_emulator_vcpu_leave(vcpu, RIFT_EMULATOR_AGAIN);
    return false;
}

/* Bytes [gpa, gpa + size) of the access that is carried out. A read whose first page is memory has not been asked
 * about before it comes here. */
static uint64_t device_read(struct unicorn *engine, uint64_t offset, unsigned size, void *context) {
    const struct rift_emulator_device_page *page = context;
    struct rift_emulator_vcpu *vcpu = page->vcpu;
    uint64_t gpa = page->gpa + offset;
    (void)engine;
    if (!is_piece(&vcpu->devices, gpa, size, 0) && !ask(vcpu, gpa, size, 0, 0))
        return 0;
    const struct rift_emulator_access *now = &vcpu->devices.now;
    uint64_t value = 0;
    for (uint32_t at = 0; at < size; ++at) {
        uint64_t byte = gpa + at - now->gpa;
        if (byte < now->size)
            value |= (now->value >> 8 * byte & 0xFF) << 8 * at;
    }
    return value;
}

/* The value is known since the access was asked about. */
static void device_write(struct unicorn *engine, uint64_t offset, unsigned size, uint64_t value, void *context) {
    (void)engine;
    (void)offset;
    (void)size;
    (void)value;
    (void)context;
}

static int watch_hole(struct rift_emulator_vcpu *vcpu, uint64_t first, uint64_t last, struct rift_error *error) {
    const struct {
        int type;
        void *callback;
    } kinds[] = {
        {UNICORN_HOOK_READ_UNMAPPED | UNICORN_HOOK_WRITE_UNMAPPED | UNICORN_HOOK_FETCH_UNMAPPED, (void *)unmapped_hook},
        {UNICORN_HOOK_READ_PROTECTED | UNICORN_HOOK_WRITE_PROTECTED | UNICORN_HOOK_FETCH_PROTECTED,
         (void *)protected_hook},
    };
    struct rift_emulator_devices *devices = &vcpu->devices;
    for (size_t at = 0; at < sizeof(kinds) / sizeof(kinds[0]); ++at) {
        unicorn_hook *hook = &devices->hooks[devices->hook_count];
        int status = unicorn.hook_add(vcpu->cpu.engine, hook, kinds[at].type, kinds[at].callback, vcpu, first, last);
        if (status)
            return rift_emulator_engine_error(error, status, "uc_hook_add");
        devices->hook_count += 1;
    }
    return 0;
}

/* Over memory that the guest writes there must be no hook: the engine would look for one at every store. */
int rift_emulator_devices_watch(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    while (devices->hook_count)
        unicorn.hook_del(vcpu->cpu.engine, devices->hooks[--devices->hook_count]);
    unicorn_hook *hooks = realloc(devices->hooks, 2 * (vcpu->mapped_count + 1) * sizeof(*hooks));
    if (!hooks)
        return rift_emulator_fail(error, ENOMEM, "realloc");
    devices->hooks = hooks;
    uint64_t start = 0;
    for (uint32_t at = 0; at < vcpu->mapped_count; ++at) {
        const struct rift_emulator_region *region = &vcpu->mapped[at];
        if (!region->writable)
            continue; /* a store there is an access to a device */
        if (region->gpa > start && watch_hole(vcpu, start, region->gpa - 1, error))
            return -1;
        start = region->gpa + region->bytes;
    }
    return watch_hole(vcpu, start, UINT64_MAX, error);
}

void rift_emulator_devices_release(struct rift_emulator_vcpu *vcpu) {
    free(vcpu->devices.hooks);
}

static void forget(struct rift_emulator_vcpu *vcpu, uint32_t at) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    unicorn.mem_unmap(vcpu->cpu.engine, devices->pages[at].gpa, PAGE);
    devices->pages[at].vcpu = NULL;
}

int rift_emulator_devices_map(struct rift_emulator_vcpu *vcpu, struct rift_error *error) {
    struct rift_emulator_devices *devices = &vcpu->devices;
    devices->has_wanted_page = 0;
    for (uint32_t at = 0; at < vcpu->mapped_count; ++at)
        if (devices->wanted_page - vcpu->mapped[at].gpa < vcpu->mapped[at].bytes)
            return 0; /* there is memory now */
    uint32_t place = 0;
    while (place < RIFT_EMULATOR_DEVICE_PAGES && devices->pages[place].vcpu)
        ++place;
    if (place == RIFT_EMULATOR_DEVICE_PAGES) {
        place = devices->page_oldest;
        devices->page_oldest = (place + 1) % RIFT_EMULATOR_DEVICE_PAGES;
        forget(vcpu, place);
    }
    struct rift_emulator_device_page *page = &devices->pages[place];
    int status = unicorn.mmio_map(vcpu->cpu.engine, devices->wanted_page, PAGE, device_read, page, device_write, page);
    if (status)
        return rift_emulator_engine_error(error, status, "uc_mmio_map");
    *page = (struct rift_emulator_device_page){.vcpu = vcpu, .gpa = devices->wanted_page};
    status = unicorn.mem_protect(vcpu->cpu.engine, page->gpa, PAGE, 0);
    return status ? rift_emulator_engine_error(error, status, "uc_mem_protect") : 0;
}

void rift_emulator_devices_clear(struct rift_emulator_vcpu *vcpu, uint64_t gpa, uint64_t bytes) {
    for (uint32_t at = 0; at < RIFT_EMULATOR_DEVICE_PAGES; ++at) {
        const struct rift_emulator_device_page *page = &vcpu->devices.pages[at];
        if (page->vcpu && page->gpa - gpa < bytes)
            forget(vcpu, at);
    }
}
