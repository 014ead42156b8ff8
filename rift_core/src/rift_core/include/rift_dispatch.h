/* Look-up, call and verdict of native exit handlers: one implementation, compiled into every backend,
 * so that its cost and its rules are the same everywhere.
 *
 * A table is filled before the first guest thread runs and is read-only afterwards. */
#ifndef RIFT_DISPATCH_H
#define RIFT_DISPATCH_H

#include "rift_abi.h"

struct rift_dispatch;

/* An empty table, or NULL without memory. Freed by rift_dispatch_destroy, which accepts NULL. */
struct rift_dispatch *rift_dispatch_create(void);
void rift_dispatch_destroy(struct rift_dispatch *dispatch);

/* Registers `handle` for exits of `kind` whose address lies in [first, last]. Fallbacks are asked only
 * after every other handler. Returns 0, -EINVAL (kind, range), -EEXIST (two that are not fallbacks
 * overlap) or -ENOMEM. */
int rift_dispatch_add(struct rift_dispatch *dispatch, uint32_t kind, uint64_t first, uint64_t last,
                      rift_exit_fn *handle, void *context, int fallback);

/* Asks the handlers for `exit`. Returns their verdict, RIFT_PASS if none wants it, or -errno. */
int rift_dispatch_exit(const struct rift_dispatch *dispatch, const struct rift_host *host, struct rift_exit *exit);

#endif
