/* A binding without a hypervisor: its exits are made up in a few instructions, so that what is left is the
 * run loop's own time. And the plain loop around the same functions. */
#include <stdint.h>
#include <time.h>

#include "kvm_binding.h"

enum { PORT = 0x10 };

static int vm_setup(struct rift_kvm_machine *machine, struct rift_error *error) {
    (void)machine;
    (void)error;
    return 0;
}

static void vm_release(struct rift_kvm_machine *machine) {
    (void)machine;
}

static int vcpu_setup(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    (void)cpu;
    (void)error;
    return 0;
}

static void vcpu_release(struct rift_kvm_cpu *cpu) {
    (void)cpu;
}

static int enter(struct rift_kvm_cpu *cpu, struct rift_error *error) {
    (void)cpu;
    (void)error;
    return 0;
}

/* A guest that reads one port for ever. */
static int decode(struct rift_kvm_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    (void)error;
    *exit = (struct rift_exit){.kind = RIFT_EXIT_PORT_IO, .size = 4, .address = PORT};
    cpu->open = RIFT_KVM_ACCESS;
    return RIFT_KVM_DISPATCH;
}

static volatile uint64_t answer;

static void complete(struct rift_kvm_cpu *cpu, uint64_t value) {
    (void)cpu;
    answer = value;
}

static int registers(struct rift_kvm_cpu *cpu, const uint32_t *ids, uint32_t count, uint64_t *words,
                     struct rift_error *error) {
    (void)cpu;
    (void)ids;
    (void)error;
    for (uint32_t at = 0; at < count; ++at)
        words[at] = 0;
    return 0;
}

static const struct rift_kvm_register table[] = {{"nothing", 64, 0, 0}};

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
    .enter = enter,
    .decode = decode,
    .complete = complete,
    .read_registers = registers,
};

uintptr_t twin_binding(void) {
    return (uintptr_t)&binding;
}

/* The same exits without dispatch: enter, decode, ask one handler, answer. Nanoseconds for `count` of them. */
uint64_t twin_plain_loop(uint64_t count, uintptr_t handler, void *context) {
    const struct rift_kvm_binding *volatile which = &binding; /* called through pointers, as the loop must */
    const struct rift_kvm_binding *it = which;
    rift_exit_fn *handle = (rift_exit_fn *)handler;
    struct rift_kvm_cpu cpu = {0};
    struct rift_exit exit;
    struct rift_error error;
    struct rift_host host = {0};
    struct timespec begin, end;
    clock_gettime(CLOCK_MONOTONIC, &begin);
    for (uint64_t number = 0; number < count; ++number) {
        if (it->enter(&cpu, &error) || it->decode(&cpu, &exit, &error) != RIFT_KVM_DISPATCH ||
            handle(context, &host, &exit) != RIFT_RESUME)
            return 0;
        it->complete(&cpu, exit.value);
    }
    clock_gettime(CLOCK_MONOTONIC, &end);
    return (uint64_t)(end.tv_sec - begin.tv_sec) * 1000000000u + (uint64_t)(end.tv_nsec - begin.tv_nsec);
}
