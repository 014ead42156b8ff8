/* Turns: the vCPUs of one machine, and the host's atomic sections, are in the guest's memory one at a time, in the
 * order of asking. The engine does not know of other vCPUs: its atomic instructions are atomic only because nobody
 * else runs.
 *
 * Who waits at the head of the queue asks the vCPU that has the turn to yield it, once a slice. A vCPU that yields
 * goes to the end of the queue. */
#include "emulator_clock.h"
#include "emulator_internal.h"

#include <stdlib.h>

/* How long a vCPU runs while others wait. */
#define SLICE_NS UINT64_C(2000000)

struct waiter {
    struct rift_emulator_control *control; /* NULL: the host */
    pthread_cond_t condition;
    int granted;
    struct waiter *next;
};

struct rift_emulator_turn {
    atomic_uint references;
    pthread_mutex_t lock; /* the rest */
    int taken;
    unsigned depth;
    pthread_t owner;
    struct rift_emulator_control *control; /* the owner's vCPU, or NULL */
    const void *last; /* who had it last; only to be compared */
    struct waiter *head, *tail;
};

struct rift_emulator_turn *rift_emulator_turn_create(void) {
    struct rift_emulator_turn *turn = calloc(1, sizeof(*turn));
    if (!turn)
        return NULL;
    atomic_init(&turn->references, 1);
    pthread_mutex_init(&turn->lock, NULL);
    return turn;
}

struct rift_emulator_turn *rift_emulator_turn_hold(struct rift_emulator_turn *turn) {
    atomic_fetch_add(&turn->references, 1);
    return turn;
}

void rift_emulator_turn_release(struct rift_emulator_turn *turn) {
    if (!turn || atomic_fetch_sub(&turn->references, 1) != 1)
        return;
    pthread_mutex_destroy(&turn->lock);
    free(turn);
}

/* Returns whether somebody else had it before. */
static int own(struct rift_emulator_turn *turn, struct rift_emulator_control *control) {
    int other = turn->last != control || !control;
    turn->owner = pthread_self();
    turn->depth = 1;
    turn->control = control;
    turn->last = control;
    return other;
}

static void enqueue(struct rift_emulator_turn *turn, struct waiter *waiter) {
    if (turn->tail)
        turn->tail->next = waiter;
    else
        turn->head = waiter;
    turn->tail = waiter;
}

static void dequeue(struct rift_emulator_turn *turn, struct waiter *waiter) {
    struct waiter **link = &turn->head;
    struct waiter *before = NULL;
    while (*link != waiter) {
        before = *link;
        link = &before->next;
    }
    *link = waiter->next;
    if (turn->tail == waiter)
        turn->tail = before;
}

int rift_emulator_turn_mine(struct rift_emulator_turn *turn) {
    pthread_mutex_lock(&turn->lock);
    int mine = turn->taken && pthread_equal(turn->owner, pthread_self());
    pthread_mutex_unlock(&turn->lock);
    return mine;
}

int rift_emulator_turn_take(struct rift_emulator_turn *turn, struct rift_emulator_control *control, int kickable) {
    pthread_mutex_lock(&turn->lock);
    if (turn->taken && pthread_equal(turn->owner, pthread_self())) {
        turn->depth += 1;
        pthread_mutex_unlock(&turn->lock);
        return 0;
    }
    if (!turn->taken) {
        turn->taken = 1;
        int other = own(turn, control);
        pthread_mutex_unlock(&turn->lock);
        return other;
    }
    struct waiter waiter = {.control = control};
    rift_emulator_condition_init(&waiter.condition);
    enqueue(turn, &waiter);
    int kicked = 0;
    while (!waiter.granted) {
        if (kickable && atomic_load(&control->kick)) {
            dequeue(turn, &waiter);
            kicked = 1;
            break;
        }
        rift_emulator_condition_wait(&waiter.condition, &turn->lock, SLICE_NS);
        if (!waiter.granted && turn->head == &waiter && turn->control)
            rift_emulator_control_yield(turn->control);
    }
    int status = kicked ? -1 : own(turn, control);
    pthread_mutex_unlock(&turn->lock);
    pthread_cond_destroy(&waiter.condition);
    return status;
}

void rift_emulator_turn_give(struct rift_emulator_turn *turn) {
    pthread_mutex_lock(&turn->lock);
    turn->depth -= 1;
    if (!turn->depth) {
        struct waiter *next = turn->head;
        turn->control = NULL;
        if (next) { /* handed over, so that whoever comes in between does not overtake */
            dequeue(turn, next);
            next->granted = 1;
            turn->owner = (pthread_t){0};
            pthread_cond_signal(&next->condition);
        } else {
            turn->taken = 0;
        }
    }
    pthread_mutex_unlock(&turn->lock);
}

void rift_emulator_turn_wake(struct rift_emulator_turn *turn) {
    pthread_mutex_lock(&turn->lock);
    for (struct waiter *waiter = turn->head; waiter; waiter = waiter->next)
        pthread_cond_signal(&waiter->condition);
    pthread_mutex_unlock(&turn->lock);
}
