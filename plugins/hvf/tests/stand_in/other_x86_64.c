/* The VM, its memory, its vCPUs, and their runs. See other_x86_64.h. */
#include "other_x86_64.h"

#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define FOREVER (~UINT64_C(0))
#define LARGE UINT64_C(0x200000)

enum { PAGE = 0x1000, PIECES = 256, FIRST_NUMBER = 41, TICK = 3000 };

struct piece {
    uint64_t gpa, size;
    unsigned flags;
    uint8_t *host;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* the vCPUs */
static struct vcpu *cpus[VCPUS];
static uint32_t next_number = FIRST_NUMBER; /* a number is given once */
static bool alive;

/* -- turns: engines know nothing of each other, so that what is atomic is so because nobody else runs */

static pthread_mutex_t turn_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turn_changed = PTHREAD_COND_INITIALIZER;
static atomic_ulong ticket, serving;

void turn_take(void) {
    pthread_mutex_lock(&turn_lock);
    unsigned long mine = atomic_fetch_add(&ticket, 1);
    while (atomic_load(&serving) != mine)
        pthread_cond_wait(&turn_changed, &turn_lock);
    pthread_mutex_unlock(&turn_lock);
}

void turn_give(void) {
    pthread_mutex_lock(&turn_lock);
    atomic_fetch_add(&serving, 1);
    pthread_cond_broadcast(&turn_changed);
    pthread_mutex_unlock(&turn_lock);
}

bool turn_wanted(void) {
    return atomic_load(&ticket) > atomic_load(&serving) + 1;
}

/* -- memory; all with the turn */

static struct piece pieces[PIECES];
static unsigned layout;

static struct piece *piece_at(uint64_t gpa) {
    for (int at = 0; at < PIECES; at++)
        if (gpa - pieces[at].gpa < pieces[at].size)
            return &pieces[at];
    return NULL;
}

uint8_t *memory_at(uint64_t gpa, unsigned flags) {
    const struct piece *piece = piece_at(gpa);
    return piece && (piece->flags & flags) == flags ? piece->host + (gpa - piece->gpa) : NULL;
}

unsigned memory_flags(uint64_t gpa) {
    const struct piece *piece = piece_at(gpa);
    return piece ? piece->flags : 0;
}

/* As second-level tables are filled: where a page is touched, as large a page as fits. */
bool memory_populate(struct vcpu *cpu, uint64_t gpa) {
    const struct piece *piece = piece_at(gpa);
    if (!piece)
        return false;
    uint64_t first = gpa & ~(LARGE - 1), end = first + LARGE;
    first = first > piece->gpa ? first : piece->gpa;
    end = end < piece->gpa + piece->size ? end : piece->gpa + piece->size;
    if (uc_mem_map_ptr(cpu->uc, first, end - first, piece->flags & 7, piece->host + (first - piece->gpa)))
        return false;
    uc_ctl_flush_tlb(cpu->uc);
    return true;
}

void memory_renew(struct vcpu *cpu) {
    uc_mem_region *old;
    uint32_t count;
    if (cpu->layout == layout || uc_mem_regions(cpu->uc, &old, &count))
        return;
    for (uint32_t at = 0; at < count; at++)
        uc_mem_unmap(cpu->uc, old[at].begin, old[at].end - old[at].begin + 1);
    uc_free(old);
    uc_ctl_flush_tlb(cpu->uc);
    cpu->layout = layout;
}

static bool aligned(uint64_t value) {
    return value % PAGE == 0;
}

API hv_return_t hv_vm_map(const void *address, uint64_t gpa, size_t size, uint64_t flags) {
    if (!alive)
        return NO_DEVICE;
    if (!aligned((uintptr_t)address) || !aligned(gpa) || !aligned(size) || !size || !flags || flags > 7 ||
        gpa + size > UINT64_C(1) << 39 || gpa + size < gpa)
        return BAD_ARGUMENT;
    hv_return_t answer = NO_RESOURCES;
    turn_take();
    struct piece *room = NULL;
    for (int at = 0; at < PIECES; at++) {
        if (!pieces[at].size)
            room = &pieces[at];
        else if (gpa < pieces[at].gpa + pieces[at].size && pieces[at].gpa < gpa + size)
            answer = BAD_ARGUMENT; /* overlaps */
    }
    if (room && answer != BAD_ARGUMENT) {
        *room = (struct piece){gpa, size, (unsigned)flags, (uint8_t *)(uintptr_t)address};
        answer = SUCCESS;
    }
    turn_give();
    return answer;
}

/* Whoever unmaps something else than was mapped is not forgiven: newer systems kill the process. */
API hv_return_t hv_vm_unmap(uint64_t gpa, size_t size) {
    turn_take();
    struct piece *piece = piece_at(gpa);
    bool exact = piece && piece->gpa == gpa && piece->size == size;
    if (!exact)
        abort();
    *piece = (struct piece){0};
    layout++;
    turn_give();
    return SUCCESS;
}

API hv_return_t hv_vm_protect(uint64_t gpa, size_t size, uint64_t flags) {
    turn_take();
    struct piece *piece = piece_at(gpa);
    bool exact = piece && piece->gpa == gpa && piece->size == size && flags && flags < 8;
    if (exact) {
        piece->flags = (unsigned)flags;
        layout++;
    }
    turn_give();
    return exact ? SUCCESS : BAD_ARGUMENT;
}

API hv_return_t hv_vm_create(uint64_t flags) {
    if (flags)
        return BAD_ARGUMENT;
    if (alive)
        return BUSY;
    alive = true;
    return SUCCESS;
}

API hv_return_t hv_vm_destroy(void) {
    if (!alive)
        return NO_DEVICE;
    pthread_mutex_lock(&lock);
    bool empty = true;
    for (int at = 0; at < VCPUS; at++)
        empty = empty && !cpus[at];
    pthread_mutex_unlock(&lock);
    if (!empty)
        return BUSY;
    turn_take();
    memset(pieces, 0, sizeof(pieces));
    layout++;
    alive = false;
    turn_give();
    return SUCCESS;
}

/* -- vCPUs */

static struct vcpu *find(uint32_t number) {
    for (int at = 0; at < VCPUS; at++)
        if (cpus[at] && cpus[at]->number == number)
            return cpus[at];
    return NULL;
}

struct vcpu *vcpu_of_thread(uint32_t number) {
    pthread_mutex_lock(&lock);
    struct vcpu *cpu = find(number);
    pthread_mutex_unlock(&lock);
    return cpu && pthread_equal(cpu->thread, pthread_self()) ? cpu : NULL;
}

API hv_return_t hv_vcpu_create(uint32_t *number, uint64_t flags) {
    if (!alive || flags)
        return alive ? BAD_ARGUMENT : NO_DEVICE;
    int place = -1;
    pthread_mutex_lock(&lock);
    for (int at = 0; at < VCPUS; at++) {
        if (!cpus[at]) {
            place = at;
        } else if (pthread_equal(cpus[at]->thread, pthread_self())) {
            pthread_mutex_unlock(&lock);
            return BUSY;
        }
    }
    struct vcpu *cpu = place >= 0 ? calloc(1, sizeof(*cpu)) : NULL;
    if (cpu) {
        cpu->thread = pthread_self();
        cpu->number = *number = next_number++;
        cpus[place] = cpu;
    }
    pthread_mutex_unlock(&lock);
    if (!cpu)
        return NO_RESOURCES;
    cpu->layout = ~0u;
    return engine_open(cpu) ? vcpu_reset(cpu) : ERROR;
}

API hv_return_t hv_vcpu_destroy(uint32_t number) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu)
        return BAD_ARGUMENT;
    pthread_mutex_lock(&lock);
    for (int at = 0; at < VCPUS; at++)
        if (cpus[at] == cpu)
            cpus[at] = NULL;
    pthread_mutex_unlock(&lock);
    uc_context_free(cpu->context);
    uc_close(cpu->uc);
    free(cpu);
    return SUCCESS;
}

/* Sticks: it ends the next run if there is none now. */
API hv_return_t hv_vcpu_interrupt(uint32_t *numbers, unsigned count) {
    hv_return_t answer = SUCCESS;
    pthread_mutex_lock(&lock);
    for (unsigned at = 0; at < count; at++) {
        struct vcpu *cpu = find(numbers[at]);
        if (cpu)
            atomic_store(&cpu->wanted, 1);
        else
            answer = BAD_ARGUMENT;
    }
    pthread_mutex_unlock(&lock);
    return answer;
}

/* -- running */

/* The instruction at RIP has not come about after all. */
static void take_back(struct vcpu *cpu) {
    cpu->executed -= cpu->begun == FIELD(cpu, F_RIP);
}

/* Memory that the engine has not: it is given, or there is an exit. */
static enum outcome memory_missing(struct vcpu *cpu) {
    const unsigned need = cpu->access == UC_MEM_READ_UNMAPPED || cpu->access == UC_MEM_READ_PROT     ? 1
                          : cpu->access == UC_MEM_WRITE_UNMAPPED || cpu->access == UC_MEM_WRITE_PROT ? 2
                                                                                                     : 4;
    take_back(cpu);
    if ((memory_flags(cpu->address) & need) && memory_populate(cpu, cpu->address) && !cpu->first_touch)
        return GO_ON;
    return ept_violation(cpu, cpu->address, need, true);
}

/* Steps that the host has asked for come first: SDM volume 3, 25.5.2. */
static enum outcome debug_trap(struct vcpu *cpu) {
    const unsigned hits = cpu->hits;
    if (FIELD(cpu, F_CPU) & CPU_STEP) {
        leave(cpu, R_STEP, 0); /* with the hits pending */
        return LEFT;
    }
    cpu->hits = 0;
    return raise_exception(cpu, DB, EXCEPTION, 0, hits);
}

/* The engine walks tables as if there were zeros where it has no memory yet. */
static enum outcome exception(struct vcpu *cpu) {
    const unsigned vector = cpu->vector;
    if (vector >= 32) {
        leave(cpu, R_TRIPLE_FAULT, 0);
        return LEFT;
    }
    if (vector == DB) { /* a step of the guest's own */
        cpu->hits |= STEPPED;
        return debug_trap(cpu);
    }
    const uint32_t code = cpu->code;
    uint32_t found;
    FIELD(cpu, F_RFLAGS) |= RF;
    if (vector != PF)
        return raise_exception(cpu, vector, EXCEPTION, code, 0);
    uint64_t linear = cpu->address, gpa;
    cpu->populated = false;
    int status = walk(cpu, linear, (code & 0x16) | FOR_ENGINE, &gpa, &found);
    if (status == 0 && cpu->populated) {
        FIELD(cpu, F_RFLAGS) &= ~(uint64_t)RF;
        take_back(cpu);
        return GO_ON;
    }
    if (status == 2)
        return ept_violation(cpu, gpa, 1, false);
    cpu->executed++; /* even if it was not fetched: a step ends with the delivery */
    return raise_exception(cpu, PF, EXCEPTION, code, linear);
}

static enum outcome stopped(struct vcpu *cpu) {
    const unsigned hits = cpu->hits;
    switch (cpu->cause) {
    case C_SLICE:
        if (!cpu->first_touch)
            return GO_ON;
        leave(cpu, R_INTERRUPT, 0); /* the host's clock */
        return LEFT;
    case C_KICK:
        leave(cpu, R_INTERRUPT, 0);
        return LEFT;
    case C_STEP:
        leave(cpu, R_STEP, 0);
        return LEFT;
    case C_WINDOW:
        leave(cpu, R_WINDOW, 0);
        return LEFT;
    case C_DEBUG:
        return debug_trap(cpu);
    case C_BREAKPOINT: /* a fault, unlike the others */
        cpu->hits = 0;
        FIELD(cpu, F_RFLAGS) |= RF;
        return raise_exception(cpu, DB, EXCEPTION, 0, hits);
    case C_INSTRUCTION:
        return instruction_carry_out(cpu);
    case C_EXCEPTION:
        return exception(cpu);
    case C_MEMORY:
        return memory_missing(cpu);
    default:
        leave(cpu, R_TRIPLE_FAULT, 0);
        return LEFT;
    }
}

static enum outcome inject(struct vcpu *cpu) {
    const unsigned info = (unsigned)FIELD(cpu, F_EVENT), type = info & EVENT_TYPE;
    uint64_t back = FIELD(cpu, F_RIP);
    if (!(info & VALID))
        return GO_ON;
    if (type == SOFT_INTERRUPT || type == SOFT_EXCEPTION || type == PRIVILEGED)
        back += FIELD(cpu, F_EVENT_LENGTH);
    cpu->executed = 1; /* a step that was asked for is over with the delivery */
    return deliver(cpu, info, (uint32_t)FIELD(cpu, F_EVENT_CODE), back);
}

static void begin(struct vcpu *cpu) {
    cpu->efer = FIELD(cpu, F_EFER);
    cpu->shadow = FIELD(cpu, F_SHADOW) & 3;
    cpu->hits = FIELD(cpu, F_PENDING_DEBUG) & (STEPPED | 15);
    cpu->executed = cpu->delivering = 0;
    cpu->pass = false;
    uc_ctl_flush_tb(cpu->uc); /* the host may have written code: the CPU would notice */
    memory_renew(cpu);
    if (cpu->forget)
        uc_ctl_flush_tlb(cpu->uc);
    cpu->forget = false;
}

static hv_return_t run(struct vcpu *cpu, bool first_touch) {
    if (!controls_allowed(cpu) || !entry_allowed(cpu)) {
        FIELD(cpu, F_REASON) = R_BAD_STATE; /* nothing else is written */
        FIELD(cpu, F_QUALIFICATION) = 0;
        return SUCCESS;
    }
    turn_take();
    cpu->first_touch = first_touch;
    begin(cpu);
    enum outcome outcome = inject(cpu);
    while (outcome == GO_ON) {
        cpu->left = TICK;
        engine_load(cpu);
        engine_run(cpu);
        engine_unload(cpu);
        outcome = stopped(cpu);
        if (outcome == GO_ON && turn_wanted()) {
            turn_give();
            turn_take();
            memory_renew(cpu);
        }
    }
    turn_give();
    return SUCCESS;
}

API hv_return_t hv_vcpu_run(uint32_t number) {
    struct vcpu *cpu = vcpu_of_thread(number);
    return cpu ? run(cpu, true) : BAD_ARGUMENT;
}

API hv_return_t hv_vcpu_run_until(uint32_t number, uint64_t deadline) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu)
        return BAD_ARGUMENT;
    return deadline == FOREVER && !POOR_CPU ? run(cpu, false) : UNSUPPORTED; /* finite ones need the timer */
}

API hv_return_t hv_vcpu_invalidate_tlb(uint32_t number) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu)
        return BAD_ARGUMENT;
    cpu->forget = true;
    return SUCCESS;
}
