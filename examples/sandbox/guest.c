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
    return rift_printf("printed from ring %u\n", rift_privilege_level());
}

/* ---- privileged instructions ---- */

void disable_interrupts(void) { __asm__ volatile("cli"); }
void halt_the_cpu(void) { __asm__ volatile("hlt"); }
void change_page_tables(void) { __asm__ volatile("mov %0, %%cr3" ::"r"(0x1000ul)); }
uint64_t read_page_table_root(void) { return rift_read_cr3(); }
uint64_t read_msr(void) { return rift_read_msr(0xC0000080); /* EFER */ }
void load_interrupt_table(void) {
    struct { uint16_t limit; uint64_t base; } __attribute__((packed)) table = {0xfff, 0};
    __asm__ volatile("lidt %0" ::"m"(table));
}

/* ---- ports ---- */

void write_port(void) { rift_out8(0xf4, 1); /* where the debug-exit handler of a supervisor guest would listen */ }
unsigned read_port(void) { return rift_in8(0x60); }

/* ---- wild pointers: the address comes from the host, which knows the layout ---- */

uint64_t read_at(uintptr_t address) { return *(volatile uint64_t *)address; }
void write_at(uintptr_t address) { *(volatile uint64_t *)address = 0x6861636b6564; }
void jump_to(uintptr_t address) { ((void (*)(void))address)(); }

/* ---- plain mistakes ---- */

int divide(int a, int b) {
    int quotient;
    __asm__ volatile("cltd; idivl %2" : "=a"(quotient) : "0"(a), "r"(b) : "edx", "cc");
    return quotient;
}
void undefined_instruction(void) { rift_undefined_instruction(); }
__attribute__((noinline)) int overflow_the_stack(int depth) {
    volatile char room[4096];
    room[0] = (char)depth;
    return depth < 1 << 30 ? overflow_the_stack(depth + 1) + room[0] : 0;
}
void spin(void) { for (;;) rift_relax(); }

int main(void) {
    rift_printf("main runs in ring %u\n", rift_privilege_level());
    return 0;
}
