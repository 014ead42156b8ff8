/* Port I/O: qualification in Intel SDM volume 3, table 28-5. A string instruction exits once an element, since RIP
 * stays at it until RCX is 0. */
#include "hvf_x86_64.h"

#include <errno.h>
#include <string.h>

enum { IO_IN = 1 << 3, IO_STRING = 1 << 4 };

int rift_hvf_x86_read_operand(const struct rift_hvf_cpu *cpu, uint32_t encoding, uint32_t width, int high,
                              uint64_t *value, struct rift_error *error) {
    if (rift_hvf_x86_get(cpu, rift_hvf_x86_general(encoding), value, error))
        return -1;
    *value = *value >> (high ? 8 : 0) & rift_hvf_mask(width);
    return 0;
}

int rift_hvf_x86_write_operand(const struct rift_hvf_cpu *cpu, uint32_t encoding, uint32_t width, int high,
                               uint64_t value, struct rift_error *error) {
    uint32_t number = rift_hvf_x86_general(encoding), shift = high ? 8 : 0;
    value &= rift_hvf_mask(width);
    if (width < 4) {
        uint64_t old;
        if (rift_hvf_x86_get(cpu, number, &old, error))
            return -1;
        value = (old & ~(rift_hvf_mask(width) << shift)) | value << shift;
    }
    return rift_hvf_x86_set(cpu, number, value, error);
}

/* One element on in a register, within the address size. */
static int step_pointer(const struct rift_hvf_cpu *cpu, uint32_t number, const struct x86_instruction *instruction,
                        uint64_t rflags, struct rift_error *error) {
    uint64_t value;
    if (rift_hvf_x86_get(cpu, number, &value, error))
        return -1;
    value = rflags & RFLAGS_DF ? value - instruction->size : value + instruction->size;
    return rift_hvf_x86_set(cpu, number, value & rift_hvf_mask(instruction->address_size), error);
}

int rift_hvf_x86_string_step(struct rift_hvf_cpu *cpu, const struct x86_instruction *instruction, int source,
                             int destination, struct rift_error *error) {
    uint64_t rflags, count;
    if (rift_hvf_x86_get(cpu, HV_RFLAGS, &rflags, error) ||
        (source && step_pointer(cpu, HV_RSI, instruction, rflags, error)) ||
        (destination && step_pointer(cpu, HV_RDI, instruction, rflags, error)))
        return -1;
    if (instruction->repeated) {
        if (rift_hvf_x86_get(cpu, HV_RCX, &count, error))
            return -1;
        count = (count - 1) & rift_hvf_mask(instruction->address_size);
        if (rift_hvf_x86_set(cpu, HV_RCX, count, error))
            return -1;
        if (count)
            return rift_hvf_x86_instruction_over(cpu, 0, error); /* the same instruction again */
    }
    return rift_hvf_x86_advance(cpu, instruction->length, error);
}

/* RDI is always in ES, whose base is 0. */
int rift_hvf_x86_string_address(const struct rift_hvf_cpu *cpu, const struct x86_instruction *instruction,
                                uint32_t number, uint64_t *linear, struct rift_error *error) {
    uint64_t base = 0;
    if (rift_hvf_x86_get(cpu, number, linear, error))
        return -1;
    if (number == HV_RSI && instruction->segment != SEGMENT_DS &&
        rift_hvf_x86_vmread(cpu, VMCS_GUEST_ES_BASE + 2u * instruction->segment, &base, error))
        return -1;
    *linear = base + (*linear & rift_hvf_mask(instruction->address_size));
    return 0;
}

int rift_hvf_x86_string_memory(struct rift_hvf_cpu *cpu, uint32_t number, uint64_t *value, enum x86_access access,
                               int check, struct rift_error *error) {
    const struct x86_instruction *instruction = &x86_of(cpu)->instruction;
    uint64_t linear, fault;
    uint32_t code;
    if (rift_hvf_x86_string_address(cpu, instruction, number, &linear, error))
        return -1;
    int status = rift_hvf_x86_copy(cpu, linear, check ? NULL : value, instruction->size, access, &fault, &code, error);
    if (status == 2) {
        rift_hvf_x86_raise(cpu, VECTOR_PF, 1, code);
        return rift_hvf_x86_set(cpu, HV_CR2, fault, error) ? -1 : 2;
    }
    return status;
}

static int decode_string(struct rift_hvf_cpu *cpu, struct rift_exit *exit, int in, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    struct x86_instruction *instruction = &x86->instruction;
    uint8_t code[15];
    uint32_t bytes;
    if (rift_hvf_x86_fetch(cpu, code, &bytes, error))
        return -1;
    if (rift_hvf_x86_instruction(code, bytes, instruction) || instruction->size != exit->size ||
        instruction->operation != (in ? OP_INPUT_STRING : OP_OUTPUT_STRING))
        return rift_hvf_x86_cannot(cpu, exit, error);
    int status = in ? rift_hvf_x86_string_memory(cpu, HV_RDI, NULL, ACCESS_WRITE, 1, error)
                    : rift_hvf_x86_string_memory(cpu, HV_RSI, &exit->value, ACCESS_READ, 0, error);
    if (status == 1)
        return rift_hvf_x86_cannot(cpu, exit, error);
    if (status)
        return status < 0 ? -1 : RIFT_HVF_REENTER; /* a page fault, which is queued */
    if (in) {
        x86->open = OPEN_INS;
        cpu->open = 1;
        return RIFT_HVF_DISPATCH;
    }
    return rift_hvf_x86_string_step(cpu, instruction, 1, 0, error) ? -1 : RIFT_HVF_DISPATCH;
}

int rift_hvf_x86_exit_io(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint64_t qualification = x86->qualification;
    const int in = (qualification & IO_IN) != 0;
    exit->kind = RIFT_EXIT_PORT_IO;
    exit->address = qualification >> 16 & 0xFFFF;
    exit->size = (uint32_t)(qualification & 7) + 1;
    exit->is_write = !in;
    x86->open_size = exit->size;
    if (qualification & IO_STRING)
        return decode_string(cpu, exit, in, error);
    if (in) {
        x86->open = OPEN_IN;
        cpu->open = 1;
        return RIFT_HVF_DISPATCH;
    }
    if (rift_hvf_x86_read_operand(cpu, 0, exit->size, 0, &exit->value, error) ||
        rift_hvf_x86_advance(cpu, x86->length, error))
        return -1;
    return RIFT_HVF_DISPATCH;
}

/* A destination that has vanished since the exit keeps what it has. */
int rift_hvf_x86_complete_io(struct rift_hvf_cpu *cpu, uint64_t value, int string, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (!string) {
        if (rift_hvf_x86_write_operand(cpu, 0, x86->open_size, 0, value, error))
            return -1;
        return rift_hvf_x86_advance(cpu, x86->length, error);
    }
    int status = rift_hvf_x86_string_memory(cpu, HV_RDI, &value, ACCESS_WRITE, 0, error);
    if (status < 0 || status == 2)
        return status < 0 ? -1 : 0; /* a page fault: the instruction starts again */
    return rift_hvf_x86_string_step(cpu, &x86->instruction, 0, 1, error);
}
