/* A second Hypervisor.framework of Apple silicon over the Unicorn engine, written from the headers for itself: it shares
 * no code with the first, and makes other choices. It knows loads and stores, HVC, WFI and requests to exit; exceptions
 * of the guest are none of its business. No test tells it anything, and it exports nothing of its own. */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <unicorn/unicorn.h>

#define API __attribute__((visibility("default")))
#define GRANULE 0x4000u

typedef int32_t hv_return_t;
typedef uint64_t hv_vcpu_t;
typedef struct {
    uint64_t syndrome, virtual_address, physical_address;
} hv_vcpu_exit_exception_t;
typedef struct {
    uint32_t reason;
    hv_vcpu_exit_exception_t exception;
} hv_vcpu_exit_t;

static const hv_return_t SUCCESS = 0, ERROR = (hv_return_t)0xfae94001, BUSY = (hv_return_t)0xfae94002,
                         BAD_ARGUMENT = (hv_return_t)0xfae94003, NO_DEVICE = (hv_return_t)0xfae94006;

enum { CANCELED, EXCEPTION, VTIMER_ACTIVATED, UNKNOWN };
enum { FIRST_VCPU = 0x1001, VCPUS = 8, REGIONS = 64 };

struct piece {
    uint64_t ipa, size, flags;
    void *host;
    int there;
};

/* Numbers are given once: a vCPU that is made after another has gone has the next one. */
struct cpu {
    hv_vcpu_t number;
    pthread_t thread;
    uc_engine *uc;
    hv_vcpu_exit_t *exit;
    unsigned layout; /* of the memory that the engine has */
    atomic_int cancel;
    uint64_t kept[1 << 16]; /* registers that the engine does not have, or not as the framework shows them */
    int interrupt, fault;   /* of the last run; -1: none */
    uint64_t fault_at;
    uint32_t fault_size;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static bool alive;
static struct piece pieces[REGIONS];
static unsigned layout;
static struct cpu *cpus[VCPUS];
static hv_vcpu_t next_number = FIRST_VCPU;

/* The engine warns of each register that it does not have. */
__attribute__((constructor)) static void silence(void) {
    setenv("UC_IGNORE_REG_BREAK", "1", 1);
}

API hv_return_t hv_vm_create(void *config) {
    if (alive || config)
        return alive ? BUSY : BAD_ARGUMENT;
    alive = true;
    return SUCCESS;
}

API hv_return_t hv_vm_destroy(void) {
    for (int i = 0; i < VCPUS; i++)
        if (cpus[i])
            return BUSY;
    alive = false;
    return SUCCESS;
}

API hv_return_t hv_vm_map(void *address, uint64_t ipa, size_t size, uint64_t flags) {
    if (((uintptr_t)address | ipa | size) % GRANULE || !size || ipa + size > UINT64_C(1) << 36)
        return BAD_ARGUMENT;
    hv_return_t answer = ERROR;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < REGIONS && answer == ERROR; i++)
        if (!pieces[i].there) {
            pieces[i] = (struct piece){ipa, size, flags, address, 1};
            layout++;
            answer = SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return answer;
}

API hv_return_t hv_vm_unmap(uint64_t ipa, size_t size) {
    hv_return_t answer = ERROR;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < REGIONS; i++)
        if (pieces[i].there && pieces[i].ipa == ipa && pieces[i].size == size) {
            pieces[i].there = 0;
            layout++;
            answer = SUCCESS;
        }
    pthread_mutex_unlock(&lock);
    return answer;
}

static bool on_fault(uc_engine *uc, uc_mem_type type, uint64_t address, int size, int64_t value, void *data) {
    struct cpu *cpu = data;
    (void)uc, (void)value;
    cpu->fault = (int)type;
    cpu->fault_at = address;
    cpu->fault_size = (uint32_t)size;
    return false;
}

static void on_interrupt(uc_engine *uc, uint32_t number, void *data) {
    ((struct cpu *)data)->interrupt = (int)number;
    uc_emu_stop(uc);
}

/* Looks for requests to exit: the engine, stopped from another thread, may do half an instruction again. */
static void on_block(uc_engine *uc, uint64_t address, uint32_t size, void *data) {
    (void)address, (void)size;
    if (atomic_load(&((struct cpu *)data)->cancel))
        uc_emu_stop(uc);
}

/* hv_sys_reg_t taken apart. */
static uc_arm64_cp_reg parts(uint16_t number) {
    return (uc_arm64_cp_reg){.op0 = number >> 14, .op1 = number >> 11 & 7, .crn = number >> 7 & 15, .crm = number >> 3 & 15,
                             .op2 = number & 7};
}

static void put_system(struct cpu *cpu, uint16_t number, uint64_t value) {
    uc_arm64_cp_reg reg = parts(number);
    reg.val = value;
    uc_reg_write(cpu->uc, UC_ARM64_REG_CP_REG, &reg);
}

API hv_return_t hv_vcpu_create(hv_vcpu_t *vcpu, hv_vcpu_exit_t **exit, void *config) {
    uc_hook hook;
    int at = 0;
    if (!alive || config)
        return alive ? BAD_ARGUMENT : NO_DEVICE;
    pthread_mutex_lock(&lock);
    while (at < VCPUS && cpus[at])
        at++;
    struct cpu *cpu = at < VCPUS ? calloc(1, sizeof(*cpu)) : NULL;
    if (cpu) {
        cpu->thread = pthread_self();
        cpu->exit = malloc(sizeof(*cpu->exit));
        cpu->number = next_number++;
        cpu->layout = ~0u;
        cpus[at] = cpu;
    }
    pthread_mutex_unlock(&lock);
    if (!cpu || uc_open(UC_ARCH_ARM64, UC_MODE_ARM, &cpu->uc) || uc_ctl_set_cpu_model(cpu->uc, UC_CPU_ARM64_MAX))
        return ERROR;
    uc_hook_add(cpu->uc, &hook, UC_HOOK_MEM_UNMAPPED | UC_HOOK_MEM_PROT, (void *)on_fault, cpu, 1, 0);
    uc_hook_add(cpu->uc, &hook, UC_HOOK_INTR, (void *)on_interrupt, cpu, 1, 0);
    uc_hook_add(cpu->uc, &hook, UC_HOOK_BLOCK, (void *)on_block, cpu, 1, 0);
    put_system(cpu, 3 << 14 | 6 << 11 | 1 << 7 | 1 << 3, 1 | 1 << 8 | 1 << 10); /* SCR_EL3: NS, HCE, RW */
    put_system(cpu, 3 << 14 | 4 << 11 | 1 << 7 | 1 << 3, UINT64_C(1) << 31);    /* HCR_EL2: RW */
    *vcpu = cpu->number;
    *exit = cpu->exit;
    return SUCCESS;
}

static struct cpu *find(hv_vcpu_t vcpu) {
    for (int i = 0; i < VCPUS; i++)
        if (cpus[i] && cpus[i]->number == vcpu)
            return cpus[i];
    return NULL;
}

#define OWNED(cpu, vcpu)                                        \
    struct cpu *cpu = find(vcpu);                               \
    if (!cpu || !pthread_equal(cpu->thread, pthread_self()))    \
        return BAD_ARGUMENT

API hv_return_t hv_vcpu_destroy(hv_vcpu_t vcpu) {
    OWNED(cpu, vcpu);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < VCPUS; i++)
        if (cpus[i] == cpu)
            cpus[i] = NULL;
    pthread_mutex_unlock(&lock);
    uc_close(cpu->uc);
    free(cpu->exit);
    free(cpu);
    return SUCCESS;
}

static int register_of(uint32_t reg) {
    static const int others[] = {UC_ARM64_REG_X29, UC_ARM64_REG_X30, UC_ARM64_REG_PC, UC_ARM64_REG_FPCR, UC_ARM64_REG_FPSR,
                                 UC_ARM64_REG_PSTATE};
    return reg < 29 ? UC_ARM64_REG_X0 + (int)reg : reg < 35 ? others[reg - 29] : 0;
}

API hv_return_t hv_vcpu_get_reg(hv_vcpu_t vcpu, uint32_t reg, uint64_t *value) {
    OWNED(cpu, vcpu);
    *value = 0;
    return register_of(reg) && !uc_reg_read(cpu->uc, register_of(reg), value) ? SUCCESS : BAD_ARGUMENT;
}

enum { SP_EL0 = 0xc208, SP_EL1 = 0xe208, SPSR_EL1 = 0xc200, MPIDR_EL1 = 0xc005 };

/* Which of the two stack pointers is the engine's SP. */
static uint16_t selected(const struct cpu *cpu) {
    uint64_t pstate = 0;
    uc_reg_read(cpu->uc, UC_ARM64_REG_PSTATE, &pstate);
    return (pstate & 0xC) && (pstate & 1) ? SP_EL1 : SP_EL0;
}

API hv_return_t hv_vcpu_set_reg(hv_vcpu_t vcpu, uint32_t reg, uint64_t value) {
    OWNED(cpu, vcpu);
    if (!register_of(reg))
        return BAD_ARGUMENT;
    uc_reg_read(cpu->uc, UC_ARM64_REG_SP, &cpu->kept[selected(cpu)]);
    uc_reg_write(cpu->uc, register_of(reg), &value);
    uc_reg_write(cpu->uc, UC_ARM64_REG_SP, &cpu->kept[selected(cpu)]);
    return SUCCESS;
}

API hv_return_t hv_vcpu_get_sys_reg(hv_vcpu_t vcpu, uint16_t reg, uint64_t *value) {
    OWNED(cpu, vcpu);
    uc_arm64_cp_reg engine = parts(reg);
    if (reg == selected(cpu))
        return uc_reg_read(cpu->uc, UC_ARM64_REG_SP, value) ? ERROR : SUCCESS;
    if (reg == SP_EL0 || reg == SP_EL1 || reg == SPSR_EL1 || uc_reg_read(cpu->uc, UC_ARM64_REG_CP_REG, &engine))
        *value = cpu->kept[reg];
    else
        *value = engine.val;
    return SUCCESS;
}

API hv_return_t hv_vcpu_set_sys_reg(hv_vcpu_t vcpu, uint16_t reg, uint64_t value) {
    OWNED(cpu, vcpu);
    if (reg == MPIDR_EL1)
        return BAD_ARGUMENT;
    cpu->kept[reg] = value;
    if (reg == selected(cpu))
        uc_reg_write(cpu->uc, UC_ARM64_REG_SP, &value);
    else
        put_system(cpu, reg, value);
    return SUCCESS;
}

API hv_return_t hv_vcpus_exit(hv_vcpu_t *vcpus, uint32_t count) {
    hv_return_t answer = SUCCESS;
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++) {
        struct cpu *cpu = find(vcpus[i]);
        if (cpu) {
            atomic_store(&cpu->cancel, 1);
        } else {
            answer = BAD_ARGUMENT;
        }
    }
    pthread_mutex_unlock(&lock);
    return answer;
}

/* The engine's memory is the VM's. */
static void renew_memory(struct cpu *cpu) {
    uc_mem_region *old;
    uint32_t count;
    pthread_mutex_lock(&lock);
    if (cpu->layout != layout && !uc_mem_regions(cpu->uc, &old, &count)) {
        for (uint32_t i = 0; i < count; i++)
            uc_mem_unmap(cpu->uc, old[i].begin, old[i].end - old[i].begin + 1);
        uc_free(old);
        for (int i = 0; i < REGIONS; i++)
            if (pieces[i].there)
                uc_mem_map_ptr(cpu->uc, pieces[i].ipa, pieces[i].size, (uint32_t)pieces[i].flags, pieces[i].host);
        cpu->layout = layout;
    }
    pthread_mutex_unlock(&lock);
}

/* ESR_EL2 of a data abort: the access is described where it is one of a single general register. */
static uint64_t abort_syndrome(struct cpu *cpu, uint64_t pc) {
    const int write = cpu->fault == UC_MEM_WRITE_UNMAPPED || cpu->fault == UC_MEM_WRITE_PROT;
    uint64_t syndrome = UINT64_C(0x24) << 26 | 1 << 25 | (write ? 1 << 6 : 0) | 7;
    uint32_t code;
    if (uc_vmem_read(cpu->uc, pc, UC_PROT_EXEC, &code, 4) || (code & 0x3E000000) != 0x38000000)
        return syndrome;
    const uint32_t operation = code >> 22 & 3;
    syndrome |= 1 << 24 | (code >> 30) << 22 | (code & 31) << 16;
    if (operation >= 2)
        syndrome |= 1 << 21;
    if (operation == 2 || (operation < 2 && code >> 30 == 3))
        syndrome |= 1 << 15;
    return syndrome;
}

static void leave(struct cpu *cpu, uint32_t reason, uint64_t syndrome) {
    cpu->exit->reason = reason; /* of the rest only what belongs to the reason */
    if (reason == EXCEPTION)
        cpu->exit->exception.syndrome = syndrome;
}

API hv_return_t hv_vcpu_run(hv_vcpu_t vcpu) {
    OWNED(cpu, vcpu);
    uint64_t pc;
    uint32_t code = 0;
    renew_memory(cpu);
    uc_ctl_flush_tb(cpu->uc);
    uc_ctl_flush_tlb(cpu->uc);
    for (;;) {
        if (atomic_exchange(&cpu->cancel, 0)) {
            leave(cpu, CANCELED, 0);
            return SUCCESS;
        }
        cpu->interrupt = cpu->fault = -1;
        uc_reg_read(cpu->uc, UC_ARM64_REG_PC, &pc);
        uc_err status = uc_emu_start(cpu->uc, pc, ~UINT64_C(0), 0, 20000);
        uc_reg_read(cpu->uc, UC_ARM64_REG_PC, &pc);
        if (cpu->fault >= 0) {
            const int fetch = cpu->fault == UC_MEM_FETCH_UNMAPPED || cpu->fault == UC_MEM_FETCH_PROT;
            cpu->exit->exception.physical_address = cpu->fault_at;
            leave(cpu, EXCEPTION, fetch ? UINT64_C(0x20) << 26 | 1 << 25 | 7 : abort_syndrome(cpu, pc));
            return SUCCESS;
        }
        if (cpu->interrupt == 11 && !uc_vmem_read(cpu->uc, pc - 4, UC_PROT_EXEC, &code, 4)) { /* HVC */
            leave(cpu, EXCEPTION, UINT64_C(0x16) << 26 | 1 << 25 | (code >> 5 & 0xFFFF));
            return SUCCESS;
        }
        if (cpu->interrupt >= 0 || status) {
            leave(cpu, UNKNOWN, 0);
            return SUCCESS;
        }
        if (!uc_vmem_read(cpu->uc, pc - 4, UC_PROT_EXEC, &code, 4) && code == 0xD503207F) { /* WFI */
            pc -= 4;
            uc_reg_write(cpu->uc, UC_ARM64_REG_PC, &pc);
            leave(cpu, EXCEPTION, UINT64_C(1) << 26 | 1 << 25);
            return SUCCESS;
        }
    }
}
