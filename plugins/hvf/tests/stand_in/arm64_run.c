/* Entering the guest: turns of the vCPUs, what the engine stops for, and the exits that a hypervisor would show. */
#include "arm64.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

#define NEVER (~UINT64_C(3)) /* an address at which emulation ends, and which no code has */
#define IL (1u << 25)
#define WFI 0xD503207Fu

/* QEMU's numbers of exceptions. */
enum { EXCP_UDEF = 1, EXCP_SVC = 2, EXCP_PREFETCH_ABORT = 3, EXCP_DATA_ABORT = 4, EXCP_BRK = 7, EXCP_HVC = 11, EXCP_SMC = 13 };

/* -- turns ---------------------------------------------------------------------------------------------------------- */

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t runner_lock = PTHREAD_MUTEX_INITIALIZER;
static struct vcpu *runner;
static atomic_int waiting;

static void nap(long nanoseconds) {
    nanosleep(&(struct timespec){.tv_nsec = nanoseconds}, 0);
}

static void stop_runner(void) {
    pthread_mutex_lock(&runner_lock);
    if (runner)
        atomic_store(&runner->yield, 1);
    pthread_mutex_unlock(&runner_lock);
}

static void take_turn(struct vcpu *vcpu) {
    atomic_fetch_add(&waiting, 1);
    while (pthread_mutex_trylock(&turn)) {
        nap(500000);
        stop_runner();
    }
    atomic_fetch_sub(&waiting, 1);
    pthread_mutex_lock(&runner_lock);
    runner = vcpu;
    pthread_mutex_unlock(&runner_lock);
}

static void give_turn(struct vcpu *vcpu) {
    pthread_mutex_lock(&runner_lock);
    runner = 0;
    pthread_mutex_unlock(&runner_lock);
    pthread_mutex_unlock(&turn);
    if (atomic_exchange(&vcpu->yield, 0))
        for (int at = 0; at < 20 && atomic_load(&waiting); ++at)
            nap(100000);
}

/* -- hooks ---------------------------------------------------------------------------------------------------------- */

static void on_exception(uc_engine *engine, uint32_t number, void *data) {
    struct vcpu *vcpu = data;
    uc_context_save(engine, vcpu->context);
    vcpu->exception = (int)number;
    memcpy(&vcpu->syndrome, (uint8_t *)vcpu->context + exception_place, 4);
    memcpy(&vcpu->fault_virtual, (uint8_t *)vcpu->context + exception_place + 8, 8);
    uc_emu_stop(engine);
}

static bool on_unmapped(uc_engine *engine, uc_mem_type type, uint64_t address, int size, int64_t value, void *data) {
    struct vcpu *vcpu = data;
    (void)engine, (void)size, (void)value;
    vcpu->unmapped = (int)type;
    vcpu->fault_address = address;
    return false;
}

/* What ends an entry from outside is looked at before each block of code: an engine that another thread stops may do so
 * behind an access to memory in the middle of an instruction, which is then executed twice. */
static void on_block(uc_engine *engine, uint64_t address, uint32_t size, void *data) {
    struct vcpu *vcpu = data;
    if (atomic_load(&vcpu->yield) || atomic_load(&vcpu->asked_to_exit) || atomic_load(&vcpu->disturbed) ||
        timer_ticks(vcpu) == 0) {
        uc_emu_stop(engine);
        return;
    }
    vcpu->block = address;
    vcpu->block_end = address + size;
}

int run_hooks(struct vcpu *vcpu) {
    uc_hook hook;
    const int faults = UC_HOOK_MEM_READ_UNMAPPED | UC_HOOK_MEM_WRITE_UNMAPPED | UC_HOOK_MEM_FETCH_UNMAPPED |
                       UC_HOOK_MEM_READ_PROT | UC_HOOK_MEM_WRITE_PROT | UC_HOOK_MEM_FETCH_PROT;
    return uc_hook_add(vcpu->engine, &hook, UC_HOOK_INTR, (void *)on_exception, vcpu, 1, 0) ||
                   uc_hook_add(vcpu->engine, &hook, UC_HOOK_BLOCK, (void *)on_block, vcpu, 1, 0) ||
                   uc_hook_add(vcpu->engine, &hook, faults, (void *)on_unmapped, vcpu, 1, 0) || timer_hooks(vcpu)
               ? -1
               : 0;
}

static void on_breakpoint(uc_engine *engine, uint64_t address, uint32_t size, void *data) {
    struct vcpu *vcpu = data;
    (void)size;
    vcpu->hit = 1;
    vcpu->hit_address = address;
    uc_emu_stop(engine);
}

/* The access is made when the engine stops: what was there is put back, and so is PC. */
static void on_watchpoint(uc_engine *engine, uc_mem_type type, uint64_t address, int size, int64_t value, void *data) {
    struct vcpu *vcpu = data;
    (void)type, (void)size, (void)value;
    if (vcpu->hit)
        return;
    vcpu->hit = 2;
    vcpu->fault_virtual = address;
    uc_reg_read(engine, UC_ARM64_REG_PC, &vcpu->hit_address);
    uc_vmem_read(engine, address & ~UINT64_C(7), UC_PROT_READ, &vcpu->watched_bytes, 8);
    uc_emu_stop(engine);
}

/* Debug registers become hooks for the length of an entry. */
static unsigned add_debug_hooks(struct vcpu *vcpu, uc_hook hooks[32]) {
    unsigned count = 0;
    if (!vcpu->trap_debug || !(vcpu->mdscr >> 15 & 1))
        return 0;
    for (unsigned at = 0; at < 16; ++at) {
        const struct debug_pair *pair = &vcpu->breaks[at], *watch = &vcpu->watches[at];
        if ((pair->control & 1) && !uc_hook_add(vcpu->engine, &hooks[count], UC_HOOK_CODE, (void *)on_breakpoint, vcpu,
                                                pair->value, pair->value))
            ++count;
        const unsigned bytes = watch->control >> 5 & 0xFF, loads = watch->control >> 3 & 1, stores = watch->control >> 4 & 1;
        if (!(watch->control & 1) || !bytes)
            continue;
        const uint64_t first = watch->value + (unsigned)__builtin_ctz(bytes);
        const uint64_t last = watch->value + 31 - (unsigned)__builtin_clz(bytes);
        if (!uc_hook_add(vcpu->engine, &hooks[count], (loads ? UC_HOOK_MEM_READ : 0) | (stores ? UC_HOOK_MEM_WRITE : 0),
                         (void *)on_watchpoint, vcpu, first, last))
            ++count;
    }
    return count;
}

/* -- exits ----------------------------------------------------------------------------------------------------------- */

static int leave(struct vcpu *vcpu, uint32_t reason, uint32_t syndrome, uint64_t virtual_address, uint64_t ipa) {
    *vcpu->exit = (struct exit_info){
        .reason = reason, .syndrome = syndrome, .virtual_address = virtual_address, .physical_address = ipa};
    return 1;
}

/* What the CPU would say of a load or store: ISS with ISV, or 0 for one that it does not describe. */
static uint32_t describe(uint32_t code) {
    const uint32_t size = code >> 30, opc = code >> 22 & 3, target = code & 31;
    if ((code & 0x3F800000) == 0x08800000 && (code & 0x1F) == target) { /* LDAR, STLR, LDLAR, STLLR */
        const uint32_t sixty_four = size == 3;
        return 1u << 24 | size << 22 | target << 16 | sixty_four << 15 | (code >> 22 & 1 ? 0 : 1u << 6);
    }
    if ((code & 0x3E000000) != 0x38000000 || code >> 26 & 1) /* a general register, one of it */
        return 0;
    const int immediate = (code >> 24 & 1) != 0, unscaled = !(code >> 21 & 1) && (code >> 10 & 3) % 2 == 0;
    const int offset = (code >> 21 & 1) && (code >> 10 & 3) == 2;
    if (!immediate && !unscaled && !offset) /* writes its base register as well */
        return 0;
    const uint32_t store = opc == 0, is_signed = opc >= 2;
    const uint32_t sixty_four = is_signed ? opc == 2 : size == 3;
    return 1u << 24 | size << 22 | is_signed << 21 | target << 16 | sixty_four << 15 | store << 6;
}

static int leave_for_memory(struct vcpu *vcpu) {
    const int fetch = vcpu->unmapped == UC_MEM_FETCH_UNMAPPED || vcpu->unmapped == UC_MEM_FETCH_PROT;
    const int write = vcpu->unmapped == UC_MEM_WRITE_UNMAPPED || vcpu->unmapped == UC_MEM_WRITE_PROT;
    const int protection = vcpu->unmapped == UC_MEM_WRITE_PROT || vcpu->unmapped == UC_MEM_READ_PROT ||
                           vcpu->unmapped == UC_MEM_FETCH_PROT;
    const uint32_t status = protection ? 0x0F : 0x07;
    if (fetch)
        return leave(vcpu, EXIT_EXCEPTION, 0x20u << 26 | IL | status, state_pc(vcpu), vcpu->fault_address);
    const uint32_t iss = describe(state_instruction(vcpu, state_pc(vcpu)));
    return leave(vcpu, EXIT_EXCEPTION, 0x24u << 26 | IL | iss | (write ? 1u << 6 : 0) | status, 0, vcpu->fault_address);
}

/* An access to a system register that is not the guest's, as the hypervisor sees it; or 0. */
static uint32_t trapped_register(uint32_t code) {
    if ((code & 0xFFD00000) != 0xD5100000)
        return 0;
    const uint32_t op0 = 2 | (code >> 19 & 1), op1 = code >> 16 & 7, crn = code >> 12 & 15, crm = code >> 8 & 15,
                   op2 = code >> 5 & 7, read = code >> 21 & 1;
    if (op1 >= 4 && op1 <= 6) /* registers of EL2 and EL3 are undefined in EL1 */
        return 0;
    if (!read && op0 == 3 && crn == 0) /* so are writes of identification registers */
        return 0;
    return 0x18u << 26 | IL | op0 << 20 | op2 << 17 | op1 << 14 | crn << 10 | (code & 31) << 5 | crm << 1 | read;
}

/* An exception: the guest's own, or one for the hypervisor. Returns 1 to leave. */
static int exception(struct vcpu *vcpu) {
    const uint32_t syndrome = vcpu->syndrome;
    uint32_t trapped;
    switch (vcpu->exception) {
    case EXCP_HVC:
        return leave(vcpu, EXIT_EXCEPTION, syndrome, 0, 0);
    case EXCP_SMC: /* trapped, not executed */
        state_set_pc(vcpu, state_pc(vcpu) - 4);
        return leave(vcpu, EXIT_EXCEPTION, syndrome, 0, 0);
    case EXCP_BRK:
        if (vcpu->trap_debug)
            return leave(vcpu, EXIT_EXCEPTION, syndrome, 0, 0);
        state_take_exception(vcpu, 0, syndrome, 0, 0);
        return 0;
    case EXCP_UDEF:
        trapped = (state_pstate(vcpu) & 0xC) ? trapped_register(state_instruction(vcpu, state_pc(vcpu))) : 0;
        if (trapped)
            return leave(vcpu, EXIT_EXCEPTION, trapped, 0, 0);
        state_take_exception(vcpu, 0, syndrome, 0, 0);
        return 0;
    case EXCP_SVC:
        vcpu->step_pending = 0; /* AArch64.CallSupervisor: SSAdvance() */
        state_take_exception(vcpu, 0, syndrome, 0, 0);
        return 0;
    case EXCP_PREFETCH_ABORT:
    case EXCP_DATA_ABORT:
        state_take_exception(vcpu, 0, syndrome, vcpu->fault_virtual, 1);
        return 0;
    default:
        fprintf(stderr, "stand-in: exception %d, syndrome %#x\n", vcpu->exception, syndrome);
        return leave(vcpu, EXIT_UNKNOWN, syndrome, 0, 0);
    }
}

static int debug_hit(struct vcpu *vcpu) {
    state_set_pc(vcpu, vcpu->hit_address);
    if (vcpu->hit == 1)
        return leave(vcpu, EXIT_EXCEPTION, 0x30u << 26 | IL | 0x22, vcpu->hit_address, 0);
    uc_vmem_write(vcpu->engine, vcpu->fault_virtual & ~UINT64_C(7), UC_PROT_READ, &vcpu->watched_bytes, 8);
    return leave(vcpu, EXIT_EXCEPTION, 0x34u << 26 | IL | 0x22, vcpu->fault_virtual, 0);
}

/* -- running --------------------------------------------------------------------------------------------------------- */

static bool is_synchronised(struct vcpu *vcpu) {
    return !atomic_load(&vcpu->code_changed) && vcpu->regions_seen == atomic_load(&machine->generation);
}

/* The engine's memory becomes the machine's. */
void run_synchronise(struct vcpu *vcpu) {
    if (atomic_exchange(&vcpu->code_changed, 0))
        uc_ctl_flush_tb(vcpu->engine);
    if (is_synchronised(vcpu))
        return; /* without the lock, for which others may wait */
    pthread_mutex_lock(&machine_lock);
    const unsigned generation = atomic_load(&machine->generation);
    if (vcpu->regions_seen != generation) {
        uc_mem_region *regions;
        uint32_t count;
        if (!uc_mem_regions(vcpu->engine, &regions, &count)) {
            for (uint32_t at = 0; at < count; ++at)
                uc_mem_unmap(vcpu->engine, regions[at].begin, regions[at].end - regions[at].begin + 1);
            uc_free(regions);
        }
        for (unsigned at = 0; at < machine->region_count; ++at) {
            const struct region *region = &machine->regions[at];
            if (uc_mem_map_ptr(vcpu->engine, region->ipa, region->bytes, (uint32_t)region->flags & 7, region->host))
                fprintf(stderr, "stand-in: the engine takes no memory at %#lx\n", (unsigned long)region->ipa);
        }
        uc_ctl_flush_tlb(vcpu->engine);
        uc_ctl_flush_tb(vcpu->engine);
        vcpu->regions_seen = generation;
    }
    pthread_mutex_unlock(&machine_lock);
}

/* An interrupt that the guest masks: it is looked for after each instruction, since the engine knows of none. */
static int is_pending(const struct vcpu *vcpu) {
    return vcpu->pending[0] || vcpu->pending[1];
}

/* Lines stay as they are until the exit: a handler that comes back without one is entered again. */
static void take_pending(struct vcpu *vcpu) {
    const uint64_t pstate = state_pstate(vcpu);
    if (vcpu->pending[0] && !(pstate & 1 << 7))
        state_take_exception(vcpu, 1, 0, 0, 0);
    else if (vcpu->pending[1] && !(pstate & 1 << 6))
        state_take_exception(vcpu, 2, 0, 0, 0);
}

/* Into the engine once. Returns 1 to leave, 0 to go on, -1 for an error. */
static int enter(struct vcpu *vcpu) {
    const int step = vcpu->trap_debug && (vcpu->mdscr & 1) && vcpu->step_pending;
    const uint64_t pc = state_pc(vcpu);
    if (timer_ticks(vcpu) == 0) {
        vcpu->timer_masked = true;
        return leave(vcpu, EXIT_VTIMER, 0, 0, 0);
    }
    if (vcpu->trap_debug && (vcpu->mdscr & 1) && !vcpu->step_pending) /* a step that ended with an exception */
        return leave(vcpu, EXIT_EXCEPTION, 0x32u << 26 | IL | 0x22, 0, 0);
    uc_hook hooks[32];
    vcpu->exception = vcpu->unmapped = -1;
    vcpu->hit = 0;
    vcpu->block = vcpu->block_end = 0;
    const unsigned count = add_debug_hooks(vcpu, hooks);
    take_turn(vcpu);
    const uc_err error = uc_emu_start(vcpu->engine, pc, NEVER, 0, step || is_pending(vcpu) ? 1 : 0);
    give_turn(vcpu);
    for (unsigned at = 0; at < count; ++at)
        uc_hook_del(vcpu->engine, hooks[at]);
    if (vcpu->hit)
        return debug_hit(vcpu);
    if (vcpu->exception >= 0)
        return exception(vcpu);
    if (vcpu->unmapped >= 0)
        return leave_for_memory(vcpu);
    if (error) {
        fprintf(stderr, "stand-in: %s at %#lx\n", uc_strerror(error), (unsigned long)state_pc(vcpu));
        return -1;
    }
    const uint64_t now = state_pc(vcpu);
    if (now - 4 >= vcpu->block && now - 4 < vcpu->block_end && !atomic_load(&vcpu->asked_to_exit) &&
        state_instruction(vcpu, now - 4) == WFI) { /* which ends a block */
        state_set_pc(vcpu, now - 4);
        return leave(vcpu, EXIT_EXCEPTION, 0x01u << 26 | IL, 0, 0);
    }
    if (step && now != pc) {
        vcpu->step_pending = 0;
        return leave(vcpu, EXIT_EXCEPTION, 0x32u << 26 | IL | 0x22, 0, 0);
    }
    return 0;
}

int run_vcpu(struct vcpu *vcpu) {
    int status = 0;
    atomic_store(&vcpu->inside, 1);
    while (!status) {
        if (atomic_exchange(&vcpu->asked_to_exit, 0)) {
            status = leave(vcpu, EXIT_CANCELED, 0, 0, 0);
            break;
        }
        take_pending(vcpu);
        run_synchronise(vcpu);
        atomic_store(&vcpu->disturbed, 0);
        atomic_store(&vcpu->entered, 1); /* whoever changes something from now on waits for the end of this entry */
        if (is_synchronised(vcpu))
            status = enter(vcpu);
        atomic_store(&vcpu->entered, 0);
    }
    vcpu->pending[0] = vcpu->pending[1] = false;
    atomic_store(&vcpu->inside, 0);
    return status < 0 ? HV_ERROR : HV_SUCCESS;
}
