/* What untrusted code may try in user mode. Each attempt is a function of its own; run.py calls them one by one. */
#include <rift_guest.h>

int harmless(int a, int b) {
    return a * b;
}

/* ---- calls to the host: rift_user_call is the only door, and the host decides what it answers ---- */

int64_t call_host(uint64_t number, uint64_t argument) {
    return rift_user_call(number, argument, 0, 0, 0, 0, 0);
}

/* Asks for bytes that the caller itself must not read to be printed. */
int64_t console_write_at(uintptr_t address) {
    return rift_user_call(RIFT_CALL_CONSOLE, address, 16, 0, 0, 0, 0);
}

int print_something(void) {
    return rift_printf("printed from %s\n", rift_privilege_name());
}

/* ---- privileged instructions ---- */

void disable_interrupts(void) { rift_disable_interrupts(); }
void halt_the_cpu(void) { rift_halt(); }
void change_page_tables(void) { rift_set_page_table_root(0x1000); }
uint64_t read_page_table_root(void) { return rift_page_table_root(); }
uint64_t read_system_register(void) {
    struct rift_system_value value;
    return rift_system_value(1, &value) ? value.value : 0;
}
void load_vectors(void) { rift_set_vectors(0); }

/* ---- ports, where the CPU has them ---- */

#if RIFT_HAS_PORTS
void write_port(void) { rift_out8(0xf4, 1); /* where the debug-exit handler of a supervisor guest would listen */ }
unsigned read_port(void) { return rift_in8(0x60); }
#endif

/* ---- wild pointers: the address comes from the host, which knows the layout ---- */

uint64_t read_at(uintptr_t address) { return *(volatile uint64_t *)address; }
void write_at(uintptr_t address) { *(volatile uint64_t *)address = 0x6861636b6564; }
void jump_to(uintptr_t address) { ((void (*)(void))address)(); }

/* ---- plain mistakes ---- */

/* x86-64 has an exception for it; on AArch64 the quotient is 0. */
int divide(int a, int b) { return rift_divide(a, b); }
void undefined_instruction(void) { rift_undefined_instruction(); }
__attribute__((noinline)) int overflow_the_stack(int depth) {
    volatile char room[4096];
    room[0] = (char)depth;
    return depth < 1 << 30 ? overflow_the_stack(depth + 1) + room[0] : 0;
}
void spin(void) { for (;;) rift_relax(); }

int main(void) {
    rift_printf("main runs in %s\n", rift_privilege_name());
    return 0;
}
