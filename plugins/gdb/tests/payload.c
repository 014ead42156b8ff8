/* What the debugger's tests debug: built for each ISA. Line numbers are looked up by the marks in comments. */
#include "rift_guest.h"

struct point {
    int x, y;
};

volatile int counter = 7;
volatile long counts[2];
volatile long watched;
struct point corner = {3, 4};
volatile const char text[] = "a needle in the hay";
const int constant = 1234;
/* Two pages whose border is looked at across; their content is their offset. */
volatile unsigned char pages[0x2000] __attribute__((aligned(0x1000)));

__attribute__((noinline)) int twice(int value) {
    int result = value * 2; /* in twice */
    counter += result;
    return result;
}

__attribute__((noinline)) int work(int rounds) {
    int sum = 0;
    for (int round = 0; round < rounds; ++round)
        sum += twice(round); /* call */
    return sum;              /* summed */
}

int main(int rounds) {
    int sum = work(rounds ? rounds : 3); /* in main */
    corner.x = sum;
    return sum;
}

__attribute__((noinline)) void bump(long who) {
    counts[who] += 1;
}

int spin(void) {
    for (;;)
        bump(0);
}

int spin_too(void) {
    for (;;)
        bump(1);
}

__attribute__((noinline)) void poke(volatile int *where, int value) {
    *where = value;
}

__attribute__((noinline)) int crash(void) {
    counter = 1;
    poke((volatile int *)0xdead0000, 5);
    return 3;
}

int deep_crash(void) {
    return crash() + 1;
}

__attribute__((noinline)) void store(long value) {
    watched = value;
}

int stores(void) {
    for (long value = 1; value <= 3; ++value)
        store(value);
    return 9;
}

int fill(void) {
    for (int at = 0; at < 0x2000; ++at)
        pages[at] = (unsigned char)(at >> 4);
    return twice(21);
}

int unanswered(void) {
    counter = 2;
    rift_doorbell_write(0x700, 1); /* nobody serves this register */
    counter = 3;
    return 4;
}

int trap(void) {
    counter = 5;
    __builtin_trap();
    return 1;
}

int own_breakpoint(void) {
    counter = 1;
#ifdef __x86_64__
    __asm__ volatile("int3");
#else
    __asm__ volatile("brk #7");
#endif
    counter = 2;
    return 6;
}

__attribute__((noinline)) int one(void) {
    return 1;
}

__attribute__((noinline)) int two(void) {
    return 2;
}

static int copy_and_call(volatile unsigned char *place, int (*function)(void)) {
    const volatile unsigned char *code = (const volatile unsigned char *)function;
    for (int at = 0; at < 16; ++at)
        place[at] = code[at];
#ifdef __aarch64__
    __asm__ volatile("dc cvau, %0\n\tdsb ish\n\tic ivau, %0\n\tdsb ish\n\tisb" : : "r"(place) : "memory");
#endif
    return ((int (*)(void))place)();
}

/* Writes one function, calls it, and writes another one over it: 21. */
int rewrite(unsigned char *place) {
    int first = copy_and_call(place, one);
    return first + 10 * copy_and_call(place, two);
}

static int skip_fault(uint64_t vector, uint64_t error, struct rift_frame *frame, uintptr_t fault_address) {
    if (rift_cause(vector, error) != RIFT_CAUSE_PAGE_FAULT || fault_address != 0xdead0000)
        return 0;
    counter = 100;
    extern char after_the_fault[] __asm__("after_the_fault"); /* Mach-O would want an underscore */
    *rift_frame_pc(frame) = (uintptr_t)after_the_fault;
    return 1;
}

__attribute__((noinline)) void mended(void) {
    counter += 1;
}

/* A fault that the payload's own handler deals with. */
int handled(void) {
    rift_set_exception_handler(skip_fault);
#ifdef __x86_64__
    __asm__ volatile("mov $0xdead0000, %%eax\n .globl the_fault\nthe_fault: movl $1, (%%rax)\n"
                     ".globl after_the_fault\nafter_the_fault: nop" ::: "rax", "memory");
#else
    __asm__ volatile("movz x9, #0xdead, lsl #16\n .globl the_fault\nthe_fault: str wzr, [x9]\n"
                     ".globl after_the_fault\nafter_the_fault: nop" ::: "x9", "memory");
#endif
    mended();
    return counter;
}
