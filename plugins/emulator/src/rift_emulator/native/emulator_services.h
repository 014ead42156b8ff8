/* What the loop offers to bindings that are compiled in. Called on the owning thread, from a hook or from one of
 * the binding's functions. */
#ifndef RIFT_EMULATOR_SERVICES_H
#define RIFT_EMULATOR_SERVICES_H

#include "emulator_binding.h"

/* Bytes of guest-physical memory if they lie in one region that allows the access, else NULL. */
uint8_t *rift_emulator_memory(struct rift_emulator_cpu *cpu, uint64_t gpa, uint64_t bytes, int writable);

/* The binding has written to guest-physical memory: translated code there is looked at before the next entry. */
void rift_emulator_written(struct rift_emulator_cpu *cpu, uint64_t gpa, uint64_t bytes);

/* What becomes of an exit. */
enum rift_emulator_verdict {
    RIFT_EMULATOR_ANSWERED = 0, /* by a native handler: exit->value; go on */
    RIFT_EMULATOR_ANSWERED_STOP = 1, /* the same, but the instruction must be the last before the engine is left */
    RIFT_EMULATOR_GIVEN = 2,    /* it is for Python or ends the run: leave the engine as if it had happened */
    RIFT_EMULATOR_REPEAT = 3    /* leave the engine as if it had not: it is to happen again */
};

/* Offers an exit to the native handlers, and remembers it for Python if none takes it. */
int rift_emulator_exit(struct rift_emulator_cpu *cpu, struct rift_exit *exit);

/* From a hook: leave the engine after it, without an exit of its own. */
void rift_emulator_leave(struct rift_emulator_cpu *cpu);

/* The same if the vCPU was kicked: from a hook that may run for ever without a block of code in between. */
void rift_emulator_heed(struct rift_emulator_cpu *cpu);

/* From a hook: the instruction that was stepped is over, and the guest is at `pc`. Returns enum
 * rift_emulator_flow; with LEAVE the engine has been told to stop. */
int rift_emulator_stepped(struct rift_emulator_cpu *cpu, uint64_t pc);

/* From a hook or `arm`: a DEBUG exit of a kind (rift_abi.h). */
void rift_emulator_debug_exit(struct rift_emulator_cpu *cpu, uint64_t kind, uint64_t pc, uint64_t address,
                              uint64_t raw);

/* From a hook: the guest leaves the straight line at `pc`, whose instruction has not been executed. */
void rift_emulator_cut(struct rift_emulator_cpu *cpu, uint64_t pc);

/* Around an instruction that ended with an exit of its own, in place of rift_emulator_stepped. */
void rift_emulator_instruction_over(struct rift_emulator_cpu *cpu);

#endif
