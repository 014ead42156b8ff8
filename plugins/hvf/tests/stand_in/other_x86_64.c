/* The VM, its memory and its vCPUs. See other_x86_64.h. */
#include "other_x86_64.h"

#include <stdlib.h>
#include <string.h>

#define API __attribute__((visibility("default")))
#define FOREVER (~UINT64_C(0))
#define LARGE UINT64_C(0x200000)

enum { PAGE = 0x1000, PIECES = 256, FIRST_NUMBER = 41 };

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

API hv_return_t hv_vcpu_run(uint32_t number) {
    struct vcpu *cpu = vcpu_of_thread(number);
    return cpu ? vcpu_run(cpu, true) : BAD_ARGUMENT;
}

API hv_return_t hv_vcpu_run_until(uint32_t number, uint64_t deadline) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu)
        return BAD_ARGUMENT;
    return deadline == FOREVER && !POOR_CPU ? vcpu_run(cpu, false) : UNSUPPORTED; /* finite ones need the timer */
}

API hv_return_t hv_vcpu_invalidate_tlb(uint32_t number) {
    struct vcpu *cpu = vcpu_of_thread(number);
    if (!cpu)
        return BAD_ARGUMENT;
    cpu->forget = true;
    return SUCCESS;
}
