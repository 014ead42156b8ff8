/* What the hypervisor gives once a process, and once a thread.
 *
 * A process has one VM. A thread has at most one vCPU, which it alone can touch and destroy. Rift's vCPUs are
 * more flexible (several on a thread, handed from thread to thread, closed by any), so a Rift vCPU takes its
 * thread's *seat* when it is used: the hypervisor's vCPU is made and given the saved state; when another wants
 * the seat, or the vCPU is parked, the state is saved and the hypervisor's vCPU destroyed.
 *
 * A vCPU that is closed by another thread leaves an empty seat, which its thread clears when it takes a seat
 * again or ends. The VM cannot be destroyed before; it is used again by the next machine, with no memory
 * mapped in it.
 *
 * This file holds the only state that is not reachable from an object: the hypervisor's own is of that kind. */
#include "hvf_internal.h"

#include <errno.h>
#include <stdlib.h>

static struct {
    pthread_mutex_t lock;
    const struct rift_hvf_framework *framework; /* whose VM exists; NULL: there is none */
    uint32_t gpa_bits;
    int used;       /* a machine uses it */
    uint32_t seats; /* of all threads */
    pthread_once_t once;
    pthread_key_t key; /* the thread's struct rift_hvf_seat */
    int key_failed;
} process = {.lock = PTHREAD_MUTEX_INITIALIZER, .once = PTHREAD_ONCE_INIT};

int rift_hvf_fail(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}

/* Destroys the VM when nobody needs it any more; one that the framework does not let go stays for the next machine.
 * Under the lock. */
static void sweep(void) {
    if (!process.framework || process.used || process.seats)
        return;
    if (process.framework->calls.vm_destroy() == HV_SUCCESS)
        process.framework = NULL;
}

static void free_seat(struct rift_hvf_seat *seat) {
    pthread_setspecific(process.key, NULL);
    free(seat);
    pthread_mutex_lock(&process.lock);
    process.seats -= 1;
    sweep();
    pthread_mutex_unlock(&process.lock);
}

/* Destroys the hypervisor vCPU of a seat without an occupant, on its thread. If the framework refuses, the seat
 * stays: it is tried again when the thread wants a seat. */
static int clear_seat(struct rift_hvf_seat *seat, struct rift_error *error) {
    int status = seat->framework->binding->vcpu_destroy(seat->framework, seat->id);
    if (status != HV_SUCCESS)
        return rift_hvf_fail(error, status, "hv_vcpu_destroy");
    free_seat(seat);
    return 0;
}

/* A thread ends. Its vCPUs are parked or closed by then, unless its owner forgot them: their state is lost. */
static void thread_ends(void *value) {
    struct rift_hvf_seat *seat = value;
    pthread_mutex_lock(&process.lock);
    struct rift_hvf_vcpu *occupant = seat->occupant;
    if (occupant) {
        rift_hvf_control_unseat(occupant->control);
        occupant->seat = NULL;
    }
    pthread_mutex_unlock(&process.lock);
    seat->framework->binding->vcpu_destroy(seat->framework, seat->id); /* nobody can try again */
    free_seat(seat);
}

static void make_key(void) {
    process.key_failed = pthread_key_create(&process.key, thread_ends);
}

static struct rift_hvf_seat *own_seat(void) {
    return pthread_getspecific(process.key);
}

int rift_hvf_process_enter(struct rift_hvf_framework *framework, uint32_t gpa_bits, struct rift_error *error) {
    pthread_once(&process.once, make_key);
    if (process.key_failed)
        return rift_hvf_fail(error, process.key_failed, "pthread_key_create");
    struct rift_hvf_seat *seat = own_seat();
    if (seat && !seat->occupant && clear_seat(seat, error))
        return -1;
    int status = 0;
    pthread_mutex_lock(&process.lock);
    if (process.framework && (process.framework != framework || process.gpa_bits != gpa_bits))
        sweep();
    if (process.used) {
        status = rift_hvf_fail(error, EBUSY, "hv_vm_create");
    } else if (process.framework && (process.framework != framework || process.gpa_bits != gpa_bits)) {
        status = rift_hvf_fail(error, EAGAIN, "hv_vm_create"); /* threads still hold vCPUs of another kind of VM */
    } else if (process.framework) {
        status = 1;
    } else {
        status = framework->binding->vm_create(framework, gpa_bits, error);
    }
    if (status >= 0) {
        process.framework = framework;
        process.gpa_bits = gpa_bits;
        process.used = 1;
    }
    pthread_mutex_unlock(&process.lock);
    return status;
}

void rift_hvf_process_leave(void) {
    struct rift_error ignored; /* what is still there is tried again later */
    struct rift_hvf_seat *seat = own_seat();
    if (seat && !seat->occupant)
        clear_seat(seat, &ignored);
    pthread_mutex_lock(&process.lock);
    process.used = 0;
    sweep();
    pthread_mutex_unlock(&process.lock);
}

void rift_hvf_forget_all(void) {
    pthread_once(&process.once, make_key);
    if (!process.key_failed) {
        free(own_seat());
        pthread_setspecific(process.key, NULL);
    }
    pthread_mutex_init(&process.lock, NULL); /* another thread may have held it */
    process.framework = NULL;
    process.used = 0;
    process.seats = 0;
}

/* Moves the vCPU's state into vcpu->saved. */
static int save(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    for (;;) {
        size_t bytes = vcpu->saved_room;
        if (!vcpu->binding->save(&vcpu->cpu, vcpu->saved, &bytes, error)) {
            vcpu->saved_bytes = bytes;
            return 0;
        }
        if (error->code != ENOSPC || bytes <= vcpu->saved_room)
            return -1;
        void *room = realloc(vcpu->saved, bytes);
        if (!room)
            return rift_hvf_fail(error, ENOMEM, "realloc");
        vcpu->saved = room;
        vcpu->saved_room = bytes;
    }
}

int rift_hvf_seat_take(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    struct rift_hvf_seat *seat = own_seat();
    if (seat && seat->occupant) {
        if (rift_hvf_seat_leave(seat->occupant, error))
            return -1;
    } else if (seat && clear_seat(seat, error)) {
        return -1;
    }
    seat = calloc(1, sizeof(*seat));
    if (!seat)
        return rift_hvf_fail(error, ENOMEM, "calloc");
    if (vcpu->binding->vcpu_create(&vcpu->cpu, error)) {
        free(seat);
        return -1;
    }
    seat->framework = vcpu->vm->framework;
    seat->id = vcpu->cpu.id;
    int code = pthread_setspecific(process.key, seat);
    if (code) {
        vcpu->binding->vcpu_destroy(seat->framework, seat->id);
        free(seat);
        return rift_hvf_fail(error, code, "pthread_setspecific");
    }
    pthread_mutex_lock(&process.lock);
    process.seats += 1;
    seat->occupant = vcpu;
    vcpu->seat = seat;
    pthread_mutex_unlock(&process.lock);
    rift_hvf_control_seat(vcpu->control, seat->id);
    if (vcpu->saved_bytes && vcpu->binding->restore(&vcpu->cpu, vcpu->saved, vcpu->saved_bytes, error)) {
        struct rift_error ignored;
        rift_hvf_seat_abandon(vcpu);
        clear_seat(seat, &ignored);
        return -1;
    }
    return 0;
}

int rift_hvf_seat_leave(struct rift_hvf_vcpu *vcpu, struct rift_error *error) {
    struct rift_hvf_seat *seat = vcpu->seat;
    if (!seat)
        return 0;
    if (rift_hvf_vcpu_settle(vcpu, 1, error) || save(vcpu, error)) /* a state in the middle of an access cannot be kept */
        return -1;
    rift_hvf_seat_abandon(vcpu);
    return clear_seat(seat, error);
}

void rift_hvf_seat_abandon(struct rift_hvf_vcpu *vcpu) {
    rift_hvf_control_unseat(vcpu->control);
    pthread_mutex_lock(&process.lock);
    if (vcpu->seat) {
        vcpu->seat->occupant = NULL;
        vcpu->seat = NULL;
    }
    pthread_mutex_unlock(&process.lock);
}
