/* WFI with nothing that could end it: on x86-64 KVM makes HLT an exit, here it sleeps in the kernel until a signal comes.
 *
 * A thread, one for the process, looks every few milliseconds at vCPUs that have not come out of the guest since its last
 * look. KVM's statistics tell which of them sleep (Documentation/virt/kvm/api.rst, 4.133): it ends that entry by a signal.
 * If the counters then say that the guest was still at its WFI (kvm_aarch64_sleep.h), and where no timer can end that
 * either, the entry has given a HALT.
 *
 * Kicks come at any time, and KVM takes the guest past the WFI that one of them ends: the same is asked then, so that a
 * guest that waits for nothing halts, whoever is first to see it. A signal from elsewhere, which nobody has announced,
 * ends a WFI as the architecture allows (Arm ARM, D1.6.2): guests wait in a loop.
 *
 * An entry costs two atomic additions. When no vCPU has been in the guest for a while the thread sleeps. */
#include "kvm_aarch64.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define LOOK_NS 10000000 /* between two looks */
#define IDLE_LOOKS 100   /* looks without a vCPU in the guest, until the thread sleeps */
#define PAUSE_LOOKS 100  /* looks that a guest is left alone for when it sleeps until a timer ends it */

#define MOST_STATISTICS 1024
#define MOST_NAME 256

static struct {
    pthread_mutex_t lock; /* the list, and its members' lives */
    pthread_cond_t wanted;
    struct rift_kvm_arm_halt *first;
    int started;
    uint32_t awake;
} watch = {.lock = PTHREAD_MUTEX_INITIALIZER, .wanted = PTHREAD_COND_INITIALIZER};

static int read_counter(int stats, uint32_t at, uint64_t *value) {
    return pread(stats, value, sizeof(*value), at) == (ssize_t)sizeof(*value) ? 0 : -1;
}

/* Those that KVM does not have are 0. */
static int read_counters(const struct rift_kvm_arm_halt *halt, struct rift_kvm_arm_counters *counters) {
    const struct rift_kvm_arm_machine *machine = halt->cpu->machine->state;
    for (int number = 0; number < ARM_COUNTERS; ++number) {
        uint32_t at = machine->counters_at[number];
        counters->value[number] = 0;
        if (at && read_counter(halt->stats, at, &counters->value[number]))
            return -1;
    }
    return 0;
}

/* -- the thread ------------------------------------------------------------------------------------- */

/* One vCPU; under the lock. Returns whether it is in the guest. */
static int look_at(struct rift_kvm_arm_halt *halt) {
    const struct rift_kvm_arm_machine *machine = halt->cpu->machine->state;
    uint32_t entries = __atomic_load_n(&halt->entries, __ATOMIC_SEQ_CST), seen = halt->seen;
    halt->seen = entries;
    if (!(entries & 1))
        return 0;
    if (entries != seen) {
        if (entries != halt->called + 2) /* else it has only gone on after the entry that was ended */
            halt->pause = 0;
        return 1;
    }
    if (halt->pause) {
        halt->pause -= 1;
        return 1;
    }
    uint64_t blocking;
    if (read_counter(halt->stats, machine->counters_at[ARM_BLOCKING], &blocking) || !blocking)
        return 1;
    halt->pause = PAUSE_LOOKS;
    halt->called = entries;
    halt->cpu->interrupt(halt->cpu);
    return 1;
}

static void *look_around(void *unused) {
    const struct timespec pause = {.tv_nsec = LOOK_NS};
    uint32_t idle = 0;
    (void)unused;
    for (;;) {
        nanosleep(&pause, NULL);
        pthread_mutex_lock(&watch.lock);
        idle += 1;
        /* The second round, after `awake` is taken back, sees whoever has entered before it could see that. */
        for (int round = 0; round < 2; ++round) {
            for (struct rift_kvm_arm_halt *halt = watch.first; halt; halt = halt->next)
                if (look_at(halt))
                    idle = 0;
            if (idle < IDLE_LOOKS)
                break;
            __atomic_store_n(&watch.awake, 0, __ATOMIC_SEQ_CST);
        }
        if (idle >= IDLE_LOOKS)
            while (!__atomic_load_n(&watch.awake, __ATOMIC_SEQ_CST))
                pthread_cond_wait(&watch.wanted, &watch.lock);
        __atomic_store_n(&watch.awake, 1, __ATOMIC_SEQ_CST);
        pthread_mutex_unlock(&watch.lock);
    }
    return NULL;
}

/* A forked child has no such thread, and its copies of vCPUs are not its own. */
static void forget_all(void) {
    pthread_mutex_init(&watch.lock, NULL);
    pthread_cond_init(&watch.wanted, NULL);
    watch.first = NULL;
    watch.started = 0;
    watch.awake = 0;
}

/* Under the lock. No signal is for this thread. */
static int start(void) {
    static int forks_are_watched;
    if (watch.started)
        return 0;
    if (!forks_are_watched && pthread_atfork(NULL, NULL, forget_all))
        return ENOMEM;
    forks_are_watched = 1;
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    pthread_t thread;
    int code = pthread_create(&thread, NULL, look_around, NULL);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code)
        return code;
    pthread_detach(thread);
    watch.started = 1;
    __atomic_store_n(&watch.awake, 1, __ATOMIC_SEQ_CST);
    return 0;
}

/* -- vCPUs ------------------------------------------------------------------------------------------ */

/* Finds the counters. Offsets are 0 where KVM has them not. */
static int find_counters(int stats, struct rift_kvm_arm_machine *machine) {
    static const char *const names[ARM_COUNTERS] = {
        [ARM_EXITS] = "exits",
        [ARM_WAITS] = "wfi_exit_stat",
        [ARM_POLLS] = "halt_attempted_poll",
        [ARM_BLOCKING] = "blocking",
    };
    struct kvm_stats_header header;
    if (pread(stats, &header, sizeof(header), 0) != (ssize_t)sizeof(header))
        return -1;
    if (header.num_desc > MOST_STATISTICS || header.name_size > MOST_NAME)
        return -1;
    struct {
        struct kvm_stats_desc head;
        char name[MOST_NAME + 1];
    } row;
    const size_t bytes = sizeof(row.head) + header.name_size;
    for (uint32_t at = 0; at < header.num_desc; ++at) {
        memset(&row, 0, sizeof(row));
        if (pread(stats, &row, bytes, (off_t)(header.desc_offset + at * bytes)) != (ssize_t)bytes)
            return -1;
        for (int number = 0; number < ARM_COUNTERS; ++number)
            if (strcmp(row.name, names[number]) == 0)
                machine->counters_at[number] = header.data_offset + row.head.offset;
    }
    return 0;
}

int rift_kvm_arm_halt_setup(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    struct rift_kvm_arm *arm = cpu->state;
    struct rift_kvm_arm_machine *machine = cpu->machine->state;
    if (!machine->statistics)
        return 0;
    int stats = rift_kvm_arm_call(cpu, KVM_GET_STATS_FD, NULL, "KVM_GET_STATS_FD", error);
    if (stats < 0)
        return -1;
    const uint32_t *at = machine->counters_at;
    if ((!at[ARM_BLOCKING] && find_counters(stats, machine)) || !at[ARM_BLOCKING] || !at[ARM_EXITS]) {
        close(stats);
        return 0;
    }
    fcntl(stats, F_SETFD, FD_CLOEXEC);
    arm->halt.stats = stats;
    arm->halt.cpu = cpu;
    pthread_mutex_lock(&watch.lock);
    int code = start();
    if (!code) {
        arm->halt.next = watch.first;
        watch.first = &arm->halt;
    }
    pthread_mutex_unlock(&watch.lock);
    return code ? rift_kvm_arm_fail(error, code, "pthread_create") : 0;
}

void rift_kvm_arm_halt_release(struct rift_kvm_cpu *cpu) {
    struct rift_kvm_arm *arm = cpu->state;
    if (arm->halt.stats < 0)
        return;
    pthread_mutex_lock(&watch.lock);
    for (struct rift_kvm_arm_halt **at = &watch.first; *at; at = &(*at)->next)
        if (*at == &arm->halt) {
            *at = arm->halt.next;
            break;
        }
    pthread_mutex_unlock(&watch.lock);
    close(arm->halt.stats);
    arm->halt.stats = -1;
}

void rift_kvm_arm_halt_forget(struct rift_kvm_cpu *cpu) {
    struct rift_kvm_arm *arm = cpu->state;
    if (arm && arm->halt.stats >= 0)
        close(arm->halt.stats);
}

/* The first of an entry counts: a signal follows it. Nobody else writes `before` meanwhile, and the owner, which adds to
 * `entries` before it reads, finds either no sample of its entry or a whole one that stays. */
void rift_kvm_arm_halt_sample(struct rift_kvm_cpu *cpu) {
    struct rift_kvm_arm_halt *halt = &((struct rift_kvm_arm *)cpu->state)->halt;
    uint32_t entry = __atomic_load_n(&halt->entries, __ATOMIC_SEQ_CST);
    if (halt->stats >= 0 && (entry & 1) && halt->sampled != entry && !read_counters(halt, &halt->before))
        __atomic_store_n(&halt->sampled, entry, __ATOMIC_RELEASE);
}

void rift_kvm_arm_halt_before(struct rift_kvm_arm_halt *halt) {
    __atomic_add_fetch(&halt->entries, 1, __ATOMIC_SEQ_CST);
    if (halt->stats < 0 || __atomic_load_n(&watch.awake, __ATOMIC_SEQ_CST))
        return;
    pthread_mutex_lock(&watch.lock);
    __atomic_store_n(&watch.awake, 1, __ATOMIC_SEQ_CST);
    pthread_cond_signal(&watch.wanted);
    pthread_mutex_unlock(&watch.lock);
}

/* Whether a timer is on its way: bit 0 of its control register enables it, bit 1 keeps it from the CPU. */
static int timer_runs(const struct rift_kvm_cpu *cpu, uint64_t number) {
    uint64_t control = 0;
    struct kvm_one_reg one = {.id = number, .addr = (uintptr_t)&control};
    return cpu->machine->ioctl(cpu->fd, KVM_GET_ONE_REG, &one) >= 0 && (control & 3) == 1;
}

int rift_kvm_arm_halt_after(struct rift_kvm_cpu *cpu, int cut_short) {
    struct rift_kvm_arm_halt *halt = &((struct rift_kvm_arm *)cpu->state)->halt;
    uint32_t entry = __atomic_fetch_add(&halt->entries, 1, __ATOMIC_SEQ_CST);
    if (!cut_short || __atomic_load_n(&halt->sampled, __ATOMIC_ACQUIRE) != entry)
        return 0;
    struct rift_kvm_arm_counters now;
    if (read_counters(halt, &now) || !rift_kvm_arm_slept(&halt->before, &now))
        return 0;
    return !timer_runs(cpu, KVM_REG_ARM_TIMER_CTL) && !timer_runs(cpu, KVM_REG_ARM_PTIMER_CTL);
}
