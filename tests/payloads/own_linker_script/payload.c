/* A freestanding payload in the manner of hosts that start guests at a symbol and read results by symbol: its own
 * linker script, 256 MiB of zeroed memory, and an interrupt table that its host turns into an IDT. Nothing of
 * Rift is included. It ends by HLT. */
#include <stdint.h>

#define BUFFER_BYTES (256u << 20)
#define PAGE 4096u

static uint8_t buffer[BUFFER_BYTES];

/* Read by the host, by name. */
volatile uint32_t used_memory;
volatile uint32_t undefined_instructions, page_faults;
volatile uint64_t last_fault_address;
const char greeting[] = "constants are where the linker script says";

struct frame {
    volatile uint64_t rip; /* changed by handlers: a compiler must not take that for nothing */
    uint64_t cs, rflags, rsp, ss;
};

__attribute__((interrupt)) static void on_undefined(struct frame *frame) {
    ++undefined_instructions;
    frame->rip += 2;
}

/* The instruction that faults is `mov (%rsi), %eax` of 2 bytes, below. */
__attribute__((interrupt)) static void on_page_fault(struct frame *frame, uint64_t code) {
    (void)code;
    uint64_t address;
    __asm__ volatile("mov %%cr2, %0" : "=r"(address));
    last_fault_address = address;
    ++page_faults;
    frame->rip += 2;
}

/* 256 gates whose offsets a linker cannot split in three: the first 8 bytes are those of a gate without its offset
 * (selector 8; type 0x8e: present, interrupt gate), the second 8 the handler's address. Behind them, at +0x1000, the
 * GDT: null, 64-bit code, and the descriptor of a TSS. */
struct gate {
    uint16_t offset_low, selector;
    uint8_t stack, type;
    uint16_t offset_middle;
    uint64_t handler;
};

#define GATE(function) {.selector = 8, .type = 0x8e, .handler = (uint64_t)(function)}

__attribute__((aligned(4096))) struct {
    struct gate gates[256];
    uint64_t descriptors[4];
} interrupt_table = {
    .gates = {[6] = GATE(on_undefined), [14] = GATE(on_page_fault)},
    .descriptors = {0, 0x00209a0000000000, 0x0000890000000067, 0},
};

/* Touches pages all over the buffer, so that all of it must be there. */
static uint32_t use_memory(void) {
    uint32_t sum = 0;
    for (uint32_t at = 0; at < BUFFER_BYTES; at += BUFFER_BYTES / 64) {
        sum += buffer[at];
        buffer[at] = (uint8_t)(at >> 20);
    }
    buffer[BUFFER_BYTES - 1] = 0xa5;
    return sum;
}

void test(void) {
    __asm__ volatile("ud2");
    uint32_t value = 0x1234;
    __asm__ volatile("mov (%%rsi), %%eax" : "+a"(value) : "S"(0x700000000000ull) : "memory");
    if (value == 0x1234 && use_memory() == 0)
        used_memory = 0xDEADBEEF;
    for (;;)
        __asm__ volatile("hlt");
}
