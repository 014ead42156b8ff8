/* Two guest threads and the host's Python on one array: each adds its share to the same counters. */
#include <rift_guest.h>

enum { CELLS = 8, ROUNDS = 1000, GUEST_THREADS = 2 };

/* The host lays a numpy array over this: the same bytes, no copy. */
uint64_t cells[CELLS];
uint64_t protected_sum; /* not atomic: the mutex keeps it whole */
uint32_t host_ready;    /* the host writes 1 when its own thread runs */

static struct rift_mutex mutex;
static struct rift_barrier barrier = RIFT_BARRIER(GUEST_THREADS);

/* The entry of both threads; `number` is 0 or 1. */
int worker(int number) {
    rift_barrier_wait(&barrier);
    while (!rift_atomic_load(&host_ready))
        rift_relax();
    for (int round = 0; round < ROUNDS; ++round) {
        rift_atomic_add(&cells[round % (CELLS - 2)], 1); /* both threads */
        if (round % 10 == 0) {
            rift_mutex_lock(&mutex);
            ++protected_sum;
            rift_mutex_unlock(&mutex);
        }
    }
    rift_barrier_wait(&barrier);
    return number;
}
