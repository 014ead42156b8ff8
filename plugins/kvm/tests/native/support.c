#include "support.h"

#include "kvm_aarch64_sleep.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static struct fault_plan plan;

struct fault_plan *fault_plan(void) {
    return &plan;
}

static int faulty(int fd, unsigned long request, void *argument) {
    if (++plan.calls == plan.at) {
        errno = plan.code;
        return -1;
    }
    return ioctl(fd, request, argument);
}

uintptr_t faulty_ioctl(void) {
    return (uintptr_t)faulty;
}

static int handle(void *context, const struct rift_host *host, struct rift_exit *exit) {
    struct handler *handler = context;
    handler->calls += 1;
    handler->address = exit->address;
    handler->value = exit->value;
    handler->is_write = exit->is_write;
    if (handler->gpa)
        handler->memory_seen = host->memory(host, handler->gpa, 8, 1) != NULL;
    handler->register_seen = host->register_id(host, "rbx");
    if (handler->register_seen >= 0) {
        host->read_register(host, handler->register_seen, &handler->register_value);
        host->write_register(host, handler->register_seen, handler->register_value + 1);
    }
    if (handler->wait) {
        int status = host->wait(host, &handler->word, 0, handler->deadline);
        if (status)
            return status;
    }
    if (handler->verdict)
        exit->value = handler->answer;
    return handler->verdict;
}

uintptr_t handler_function(void) {
    return (uintptr_t)handle;
}

static int resume(void *context, const struct rift_host *host, struct rift_exit *exit) {
    return RIFT_RESUME;
}

uintptr_t quick_handler(void) {
    return (uintptr_t)resume;
}

static struct fake state;

struct fake *fake(void) {
    return &state;
}

static int vm_setup(struct rift_kvm_machine *machine, struct rift_error *error) {
    return 0;
}

static void vm_release(struct rift_kvm_machine *machine) {
}

static int vcpu_setup(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    return 0;
}

static void vcpu_release(struct rift_kvm_cpu *cpu) {
}

static void before_interrupt(struct rift_kvm_cpu *cpu) {
    state.announced += 1;
    state.announced_inside += (uint64_t)__atomic_load_n(&state.inside, __ATOMIC_SEQ_CST);
}

static int enter(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    state.entries += 1;
    if (!state.waits)
        return 0;
    __atomic_store_n(&state.inside, 1, __ATOMIC_SEQ_CST);
    while (!*(volatile uint8_t *)&cpu->run->immediate_exit)
        usleep(1000);
    __atomic_store_n(&state.inside, 0, __ATOMIC_SEQ_CST);
    error->code = EINTR;
    error->operation = "KVM_RUN";
    return state.halts ? 0 : -1;
}

static int decode(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    uint64_t port = state.period && state.entries % state.period == 0 ? 0x20 : 0x10;
    *exit = (struct rift_exit){.kind = RIFT_EXIT_PORT_IO, .size = 4, .address = port};
    cpu->open = RIFT_KVM_ACCESS;
    if (state.waits) {
        *exit = (struct rift_exit){.kind = RIFT_EXIT_HALT};
        cpu->open = RIFT_KVM_COMPLETE;
    }
    return RIFT_KVM_DISPATCH;
}

static void complete(struct rift_kvm_cpu *cpu, uint64_t value) {
    state.last_reply = value;
}

static int registers(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                     struct rift_error *error) {
    for (uint32_t at = 0; at < count; ++at)
        words[at] = state.entries;
    return 0;
}

static const struct rift_kvm_register table[] = {{"entries", 64, 0, 0}};

static const struct rift_kvm_binding binding = {
    .version = RIFT_KVM_BINDING_VERSION,
    .bytes = sizeof(struct rift_kvm_binding),
    .isa = "made-up",
    .registers = table,
    .register_count = 1,
    .vm_setup = vm_setup,
    .vm_release = vm_release,
    .vcpu_setup = vcpu_setup,
    .vcpu_release = vcpu_release,
    .before_interrupt = before_interrupt,
    .enter = enter,
    .decode = decode,
    .complete = complete,
    .read_registers = registers,
};

uintptr_t fake_binding(void) {
    return (uintptr_t)&binding;
}

int arm_slept(const uint64_t *before, const uint64_t *after) {
    struct rift_kvm_arm_counters old, now;
    memcpy(&old, before, sizeof(old));
    memcpy(&now, after, sizeof(now));
    return rift_kvm_arm_slept(&old, &now);
}
