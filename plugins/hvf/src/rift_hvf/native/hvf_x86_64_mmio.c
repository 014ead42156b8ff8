/* EPT violations: an access to a guest-physical address that the hypervisor has no memory for, or not of this kind.
 *
 * The address is looked up in our own map. Inside a region that allows the access there is nothing to do but to enter
 * the guest again. Otherwise it is a device: the instruction is decoded and carried out here, its accesses one after
 * the other as exits. Qualification: Intel SDM volume 3, table 28-7. */
#include "hvf_x86_64.h"

#include <errno.h>
#include <string.h>

enum { EPT_READ = 1, EPT_WRITE = 2, EPT_FETCH = 4, EPT_LINEAR_VALID = 1 << 7, EPT_TRANSLATED = 1 << 8 };

int rift_hvf_x86_cannot(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    uint8_t code[15];
    uint32_t bytes;
    if (rift_hvf_x86_fetch(cpu, code, &bytes, error))
        return -1;
    *exit = (struct rift_exit){
        .kind = RIFT_EXIT_FAIL_ENTRY,
        .address = x86->rip,
        .size = bytes,
        .raw_reason = x86->reason,
    };
    memcpy(exit->info, code, bytes);
    return RIFT_HVF_DISPATCH;
}

static int memory_fault(struct rift_hvf_cpu *cpu, struct rift_exit *exit, uint64_t gpa) {
    exit->kind = RIFT_EXIT_MEMORY_FAULT;
    exit->address = gpa;
    exit->info[0] = x86_of(cpu)->qualification;
    return RIFT_HVF_DISPATCH;
}

/* -- the operands ----------------------------------------------------------------------------------------- */

static int is_string(uint32_t operation) {
    return operation == OP_MOVE_STRING || operation == OP_STORE_STRING || operation == OP_LOAD_STRING;
}

static int reads_memory(const struct x86_instruction *instruction) {
    switch (instruction->operation) {
    case OP_STORE:
    case OP_STORE_VECTOR:
    case OP_STORE_IMMEDIATE:
    case OP_STORE_FLAG:
    case OP_STORE_STRING:
    case OP_MOVE_STRING: /* where the destination is the device; see begin */
        return 0;
    default:
        return 1;
    }
}

/* The value that a store stores. */
static int stored_value(struct rift_hvf_cpu *cpu, uint64_t words[2], struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const struct x86_instruction *instruction = &x86->instruction;
    uint64_t flags;
    switch (instruction->operation) {
    case OP_STORE_IMMEDIATE:
        words[0] = instruction->immediate;
        return 0;
    case OP_STORE_FLAG:
        if (rift_hvf_x86_get(cpu, HV_RFLAGS, &flags, error))
            return -1;
        words[0] = (uint64_t)rift_hvf_x86_condition(instruction->condition, flags);
        return 0;
    case OP_STORE_STRING:
        return rift_hvf_x86_read_operand(cpu, 0, instruction->size, 0, words, error);
    case OP_STORE_VECTOR:
        if (rift_hvf_x86_fetch_fpu(cpu, error))
            return -1;
        rift_xsave_read(x86->fpu, x86->avx_offset, RIFT_XSAVE_XMM, instruction->reg, 128, words);
        return 0;
    default: /* OP_STORE */
        return rift_hvf_x86_read_operand(cpu, instruction->reg, instruction->width, instruction->high, words, error);
    }
}

/* -- finishing an instruction -------------------------------------------------------------------------------- */

static int advance(struct rift_hvf_cpu *cpu, struct rift_error *error) {
    const struct x86_instruction *instruction = &x86_of(cpu)->instruction;
    if (is_string(instruction->operation))
        return rift_hvf_x86_string_step(cpu, instruction, instruction->operation != OP_STORE_STRING,
                                        instruction->operation != OP_LOAD_STRING, error);
    return rift_hvf_x86_advance(cpu, instruction->length, error);
}

/* The result of an arithmetic operation whose memory operand is `memory`. Returns 1 if it goes to memory (in
 * *result), 0 if not, or -1. */
static int compute(struct rift_hvf_cpu *cpu, uint64_t memory, uint64_t *result, struct rift_error *error) {
    const struct x86_instruction *instruction = &x86_of(cpu)->instruction;
    const uint32_t operation = instruction->operation, size = instruction->size;
    uint64_t rflags, other = instruction->immediate, accumulator;
    if (rift_hvf_x86_get(cpu, HV_RFLAGS, &rflags, error))
        return -1;
    if (instruction->direction != TO_MEMORY_FROM_IMMEDIATE &&
        rift_hvf_x86_read_operand(cpu, instruction->reg, size, instruction->high, &other, error))
        return -1;
    uint64_t flags = rflags & RFLAGS_ARITHMETIC;
    int to_memory = operation != OP_COMPARE && operation != OP_TEST && operation != OP_BIT_TEST;
    if (operation == OP_EXCHANGE) {
        *result = other;
        return rift_hvf_x86_write_operand(cpu, instruction->reg, size, instruction->high, memory, error) ? -1 : 1;
    }
    if (operation == OP_COMPARE_EXCHANGE) {
        if (rift_hvf_x86_read_operand(cpu, 0, size, 0, &accumulator, error))
            return -1;
        const int equal = rift_hvf_x86_arithmetic(operation, size, accumulator, memory, &flags) == 0;
        *result = equal ? other : memory; /* the CPU writes in either case */
        if (!equal && rift_hvf_x86_write_operand(cpu, 0, size, 0, memory, error))
            return -1;
    } else if (instruction->direction == TO_REGISTER_FROM_MEMORY) {
        *result = rift_hvf_x86_arithmetic(operation, size, other, memory, &flags);
        if (to_memory && rift_hvf_x86_write_operand(cpu, instruction->reg, size, instruction->high, *result, error))
            return -1;
        to_memory = 0;
    } else {
        *result = rift_hvf_x86_arithmetic(operation, size, memory, other, &flags);
        if (operation == OP_EXCHANGE_ADD &&
            rift_hvf_x86_write_operand(cpu, instruction->reg, size, instruction->high, memory, error))
            return -1;
    }
    if (rift_hvf_x86_set(cpu, HV_RFLAGS, (rflags & ~RFLAGS_ARITHMETIC) | flags, error))
        return -1;
    return to_memory;
}

/* What was read goes to its destination. Returns 1 with *exit when the device is written as well, 0, or -1. */
static int finish_read(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const struct x86_instruction *instruction = &x86->instruction;
    uint64_t value = x86->access_words[0];
    int write = 0, status = 0;
    switch (instruction->operation) {
    case OP_LOAD:
        status = rift_hvf_x86_write_operand(cpu, instruction->reg, instruction->width, instruction->high, value, error);
        break;
    case OP_LOAD_SIGNED:
        if (value >> (8 * instruction->size - 1))
            value |= ~rift_hvf_mask(instruction->size);
        status = rift_hvf_x86_write_operand(cpu, instruction->reg, instruction->width, 0, value, error);
        break;
    case OP_LOAD_STRING:
        status = rift_hvf_x86_write_operand(cpu, 0, instruction->size, 0, value, error);
        break;
    case OP_LOAD_VECTOR:
        status = rift_hvf_x86_fetch_fpu(cpu, error);
        if (!status)
            rift_xsave_write(x86->fpu, x86->avx_offset, RIFT_XSAVE_XMM, instruction->reg, 128, x86->access_words);
        x86->fpu_changed = 1;
        break;
    case OP_MOVE_STRING:
        status = rift_hvf_x86_string_memory(cpu, HV_RDI, &value, ACCESS_WRITE, 0, error);
        if (status == 2)
            return 0; /* a page fault: the instruction starts again */
        status = status < 0 ? -1 : 0;
        break;
    default:
        write = compute(cpu, value, &x86->access_words[0], error);
        status = write < 0 ? -1 : 0;
        break;
    }
    if (status || advance(cpu, error))
        return -1;
    x86->part_next = 0;
    return write ? rift_hvf_x86_access_write(cpu, exit) : 0;
}

int rift_hvf_x86_complete_mmio(struct rift_hvf_cpu *cpu, uint64_t value, struct rift_exit *exit,
                               struct rift_error *error) {
    if (!x86_of(cpu)->access_reading) /* a store, of which more is to come */
        return rift_hvf_x86_access_write(cpu, exit);
    rift_hvf_x86_access_answer(cpu, value);
    return rift_hvf_x86_access_read(cpu, exit) ? 1 : finish_read(cpu, exit, error);
}

/* -- beginning one ---------------------------------------------------------------------------------------- */

/* Whether the device is written, which decides what a page fault of the operand's other page says. */
static enum x86_access access_of(const struct x86_instruction *instruction, int write_fault) {
    switch (instruction->operation) {
    case OP_LOAD:
    case OP_LOAD_SIGNED:
    case OP_LOAD_VECTOR:
    case OP_LOAD_STRING:
    case OP_COMPARE:
    case OP_TEST:
    case OP_BIT_TEST:
        return ACCESS_READ;
    case OP_MOVE_STRING:
        return write_fault ? ACCESS_WRITE : ACCESS_READ;
    default:
        return instruction->direction == TO_REGISTER_FROM_MEMORY ? ACCESS_READ : ACCESS_WRITE;
    }
}

/* The parts of the operand. Returns as rift_hvf_x86_access_plan. */
static int plan(struct rift_hvf_cpu *cpu, uint64_t gpa, int write_fault, struct rift_error *error) {
    const struct x86_instruction *instruction = &x86_of(cpu)->instruction;
    const int at_rdi = instruction->operation == OP_STORE_STRING ||
                       (write_fault && instruction->operation == OP_MOVE_STRING);
    uint64_t linear;
    int status = is_string(instruction->operation)
                     ? rift_hvf_x86_string_address(cpu, instruction, at_rdi ? HV_RDI : HV_RSI, &linear, error)
                     : rift_hvf_x86_linear(cpu, instruction, &linear, error);
    if (status)
        return -1;
    return rift_hvf_x86_access_plan(cpu, linear, gpa, access_of(instruction, write_fault), error);
}

/* A string move between a device and memory. Returns 0 to go on, 1: it cannot be done, 2: a page fault is queued. */
static int prepare_move(struct rift_hvf_cpu *cpu, int write, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (write)
        return rift_hvf_x86_string_memory(cpu, HV_RSI, &x86->access_words[0], ACCESS_READ, 0, error);
    return rift_hvf_x86_string_memory(cpu, HV_RDI, NULL, ACCESS_WRITE, 1, error);
}

static int begin(struct rift_hvf_cpu *cpu, uint64_t gpa, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    struct x86_instruction *instruction = &x86->instruction;
    const int write_fault = (x86->qualification & EPT_WRITE) != 0;
    uint8_t code[15];
    uint32_t bytes;
    if (rift_hvf_x86_fetch(cpu, code, &bytes, error))
        return -1;
    if (rift_hvf_x86_instruction(code, bytes, instruction) || instruction->operation == OP_INPUT_STRING ||
        instruction->operation == OP_OUTPUT_STRING)
        return rift_hvf_x86_cannot(cpu, exit, error);
    const int move = instruction->operation == OP_MOVE_STRING;
    x86->access_words[0] = x86->access_words[1] = 0;
    int status = plan(cpu, gpa, write_fault, error);
    if (!status && move)
        status = prepare_move(cpu, write_fault, error);
    if (status)
        return status < 0 ? -1 : status == 2 ? RIFT_HVF_REENTER : rift_hvf_x86_cannot(cpu, exit, error);
    int shown;
    if (move ? write_fault : !reads_memory(instruction)) {
        if ((!move && stored_value(cpu, x86->access_words, error)) || advance(cpu, error))
            return -1;
        x86->access_reading = 0;
        shown = rift_hvf_x86_access_write(cpu, exit);
    } else if (!(shown = rift_hvf_x86_access_read(cpu, exit))) { /* memory that can only be read, then written */
        shown = finish_read(cpu, exit, error);
    }
    return shown < 0 ? -1 : shown ? RIFT_HVF_DISPATCH : RIFT_HVF_REENTER;
}

/* Nothing to see: a page that is touched for the first time. */
static int enter_again(struct rift_hvf_cpu *cpu, uint64_t gpa, struct rift_exit *exit) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    if (!rift_hvf_memory_repeats(&x86->repeats, gpa, x86->rip))
        return RIFT_HVF_REENTER;
    x86->event = 0;
    return memory_fault(cpu, exit, gpa);
}

int rift_hvf_x86_exit_ept(struct rift_hvf_cpu *cpu, struct rift_exit *exit, struct rift_error *error) {
    struct rift_hvf_x86 *x86 = x86_of(cpu);
    const uint64_t qualification = x86->qualification;
    uint64_t gpa;
    int delivering;
    if (rift_hvf_x86_vmread(cpu, VMCS_GUEST_PHYSICAL_ADDRESS, &gpa, error) ||
        rift_hvf_x86_requeue(cpu, &delivering, error))
        return -1;
    uint32_t wanted = (qualification & EPT_READ ? HV_MEMORY_READ : 0) |
                      (qualification & EPT_WRITE ? HV_MEMORY_WRITE : 0) |
                      (qualification & EPT_FETCH ? HV_MEMORY_EXEC : 0);
    const uint32_t permissions = rift_hvf_memory_permissions(cpu->vm, gpa);
    if (permissions && (permissions & wanted) == wanted)
        return enter_again(cpu, gpa, exit);
    /* Code, page tables and stacks of exceptions cannot be on a device. */
    const int tables = (qualification & EPT_LINEAR_VALID) && !(qualification & EPT_TRANSLATED);
    if (delivering || tables || (qualification & EPT_FETCH)) {
        x86->event = 0;
        return memory_fault(cpu, exit, gpa);
    }
    return begin(cpu, gpa, exit, error);
}
