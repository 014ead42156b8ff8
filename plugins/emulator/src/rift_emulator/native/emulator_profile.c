/* Counts how often each stretch of code was executed, without stopping for each instruction: a hook counts translated
 * blocks as they begin, and what leaves a block in its middle corrects the count. */
#include "emulator_internal.h"

#include <errno.h>
#include <stdlib.h>

#define FIRST_SLOTS 4096u
#define MOST_SLOTS (1u << 22)

static struct rift_emulator_block *slot(struct rift_emulator_block *blocks, uint32_t slots, uint64_t pc, uint32_t bytes) {
    uint64_t at = (pc * UINT64_C(0x9E3779B97F4A7C15) + bytes) >> 32;
    for (;; ++at) {
        struct rift_emulator_block *block = &blocks[at % slots];
        if (!block->bytes || (block->pc == pc && block->bytes == bytes))
            return block;
    }
}

/* Twice as many slots, if there is memory; else what is new is no longer counted. */
static void grow(struct rift_emulator_profile *profile) {
    uint32_t slots = profile->slots * 2;
    struct rift_emulator_block *blocks = slots <= MOST_SLOTS ? calloc(slots, sizeof(*blocks)) : NULL;
    if (!blocks)
        return;
    for (uint32_t at = 0; at < profile->slots; ++at) {
        const struct rift_emulator_block *block = &profile->blocks[at];
        if (block->bytes)
            *slot(blocks, slots, block->pc, block->bytes) = *block;
    }
    free(profile->blocks);
    profile->blocks = blocks;
    profile->slots = slots;
}

static void count(struct rift_emulator_profile *profile, uint64_t pc, uint32_t bytes, int difference) {
    struct rift_emulator_block *block = slot(profile->blocks, profile->slots, pc, bytes);
    if (!block->bytes) {
        if (profile->used * 2 >= profile->slots) {
            grow(profile);
            block = slot(profile->blocks, profile->slots, pc, bytes);
            if (profile->used * 2 >= profile->slots)
                return;
        }
        *block = (struct rift_emulator_block){.pc = pc, .bytes = bytes};
        profile->used += 1;
    }
    block->count += (uint64_t)difference;
}

static void block_hook(struct unicorn *engine, uint64_t pc, uint32_t bytes, void *context) {
    struct rift_emulator_vcpu *vcpu = context;
    (void)engine;
    vcpu->profile.pc = pc;
    vcpu->profile.bytes = bytes;
    if (bytes)
        count(&vcpu->profile, pc, bytes, 1);
}

void rift_emulator_cut(struct rift_emulator_cpu *cpu, uint64_t pc) {
    struct rift_emulator_profile *profile = &((struct rift_emulator_vcpu *)cpu)->profile;
    if (!profile->bytes || pc - profile->pc >= profile->bytes)
        return;
    count(profile, profile->pc, profile->bytes, -1);
    if (pc > profile->pc)
        count(profile, profile->pc, (uint32_t)(pc - profile->pc), 1);
    profile->bytes = 0;
}

int rift_emulator_vcpu_profile(struct rift_emulator_vcpu *vcpu, int on, struct rift_error *error) {
    struct rift_emulator_profile *profile = &vcpu->profile;
    if (profile->hook)
        unicorn.hook_del(vcpu->cpu.engine, profile->hook);
    rift_emulator_profile_release(vcpu);
    if (on) {
        profile->blocks = calloc(FIRST_SLOTS, sizeof(*profile->blocks));
        if (!profile->blocks)
            return rift_emulator_fail(error, ENOMEM, "calloc");
        profile->slots = FIRST_SLOTS;
        int status = unicorn.hook_add(vcpu->cpu.engine, &profile->hook, UNICORN_HOOK_BLOCK, (void *)block_hook, vcpu, 1, 0);
        if (status)
            return rift_emulator_engine_error(error, status, "uc_hook_add");
    }
    rift_emulator_code_flush(vcpu); /* blocks that are translated already do not call the hook, or still do */
    return 0;
}

uint32_t rift_emulator_vcpu_blocks(struct rift_emulator_vcpu *vcpu, struct rift_emulator_block *blocks, uint32_t room) {
    const struct rift_emulator_profile *profile = &vcpu->profile;
    uint32_t found = 0;
    for (uint32_t at = 0; at < profile->slots; ++at) {
        if (!profile->blocks[at].count)
            continue;
        if (found < room)
            blocks[found] = profile->blocks[at];
        found += 1;
    }
    return found;
}

void rift_emulator_profile_release(struct rift_emulator_vcpu *vcpu) {
    free(vcpu->profile.blocks);
    vcpu->profile = (struct rift_emulator_profile){0};
}
