/* Supervisor code inside an ordinary process: says where it is, does what only a kernel may do, and takes an
 * exception of its own. */
#include <rift_guest.h>

static int exceptions;

/* Runs on the CPU's exception path, in supervisor mode. Steps over the instruction that no CPU executes. */
int rift_exception(uint64_t vector, uint64_t error, struct rift_frame *frame, uintptr_t fault_address) {
    (void)fault_address;
    if (rift_cause(vector, error) != RIFT_CAUSE_UNDEFINED_INSTRUCTION)
        return 0; /* not handled: the host reports it and ends the thread */
    ++exceptions;
    rift_printf("  exception %llu at %#llx: stepping over it\n", (unsigned long long)vector,
                (unsigned long long)*rift_frame_pc(frame));
    *rift_frame_pc(frame) += RIFT_UNDEFINED_BYTES;
    return 1;
}

/* Also called from Python: machine.call("add", 2, 3). */
int add(int a, int b) {
    return a + b;
}

int main(void) {
    rift_printf("Hello from %s\n", rift_privilege_name());
    struct rift_system_value value;
    for (unsigned index = 0; rift_system_value(index, &value); ++index)
        rift_printf("  %-3s = %#010llx  %s\n", value.name, (unsigned long long)value.value, value.meaning);
    rift_printf("  main is at %p, the stack at %p\n", (void *)(uintptr_t)main, __builtin_frame_address(0));

    struct rift_walk walk;
    if (rift_walk((uintptr_t)main, &walk) == RIFT_WALK_MAPPED)
        rift_printf("  its page table entry is %#llx: guest-physical %#llx\n", (unsigned long long)walk.value,
                    (unsigned long long)walk.physical);

    rift_puts("An undefined instruction:\n");
    rift_undefined_instruction();
    rift_printf("  back again, %d exception handled\n", exceptions);

    rift_printf("2 + 3 = %d\n", add(2, 3));
    return 0;
}
