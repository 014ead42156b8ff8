/* A decoder for 64-bit mode instructions with a memory operand, and what they compute.
 *
 * The hypervisor says where an access went, but neither how long its instruction is nor which register takes part.
 * Only what compilers and drivers use on devices is known here; anything else is refused, which the caller reports
 * with the instruction's bytes. Encodings: Intel SDM volume 2, 2.1 (format), appendix A (opcode maps). */
#include "hvf_x86_64_encoding.h"

#include "hvf_x86_64_constants.h"

#include <string.h>

static void set_register(struct x86_instruction *instruction, const struct x86_encoding *stream, int reg) {
    instruction->reg = (uint8_t)((uint32_t)reg | (stream->rex & 4) << 1);
    if (instruction->width == 1 && !stream->rex && reg >= 4) {
        instruction->reg = (uint8_t)(reg - 4);
        instruction->high = 1;
    }
}

/* Size of a word operand: 2, 4 or 8 bytes. */
static uint8_t word_size(const struct x86_encoding *stream) {
    return stream->rex & 8 ? 8 : stream->operand16 ? 2 : 4;
}

static void set_size(struct x86_instruction *instruction, const struct x86_encoding *stream, int byte) {
    instruction->size = instruction->width = byte ? 1 : word_size(stream);
}

/* The operations of opcodes 0x00 to 0x3F, and of the reg field of group 1, in their order. */
static const uint8_t arithmetic[8] = {OP_ADD, OP_OR, OP_ADC, OP_SBB, OP_AND, OP_SUB, OP_XOR, OP_COMPARE};

/* An opcode with a memory operand and a register. */
static int with_register(struct x86_encoding *stream, struct x86_instruction *instruction, uint32_t operation,
                         uint32_t direction, int byte) {
    set_size(instruction, stream, byte);
    int reg = rift_hvf_x86_memory_operand(stream, instruction);
    if (reg < 0)
        return -1;
    set_register(instruction, stream, reg);
    instruction->operation = (uint8_t)operation;
    instruction->direction = (uint8_t)direction;
    return 0;
}

/* A memory operand and an immediate of `bytes`, after the reg field, which the caller looks at. */
static int with_immediate(struct x86_encoding *stream, struct x86_instruction *instruction, int byte,
                          int short_immediate) {
    set_size(instruction, stream, byte);
    int reg = rift_hvf_x86_memory_operand(stream, instruction);
    if (reg < 0)
        return -1;
    uint32_t size = short_immediate ? 1 : instruction->size > 4 ? 4 : instruction->size;
    instruction->immediate = rift_hvf_x86_next_signed(stream, size);
    instruction->direction = TO_MEMORY_FROM_IMMEDIATE;
    return reg;
}

static int decode_string(const struct x86_encoding *stream, struct x86_instruction *instruction, uint32_t operation,
                         int byte) {
    set_size(instruction, stream, byte);
    instruction->operation = (uint8_t)operation;
    instruction->repeated = stream->rep || stream->repne; /* both mean REP for these: SDM volume 2, REP */
    return 0;
}

/* MOV between the accumulator and an absolute address of 8 bytes (4 with an address-size prefix). */
static int decode_absolute(struct x86_encoding *stream, struct x86_instruction *instruction, uint8_t opcode) {
    set_size(instruction, stream, !(opcode & 1));
    instruction->operation = opcode & 2 ? OP_STORE : OP_LOAD;
    instruction->base = instruction->index = NO_REGISTER;
    instruction->displacement = rift_hvf_x86_next_signed(stream, stream->address32 ? 4 : 8);
    if (stream->address32)
        instruction->displacement &= 0xFFFFFFFF;
    return 0;
}

/* Group 3 (TEST, NOT, NEG) and groups 4 and 5 (INC, DEC). */
static int decode_unary(struct x86_encoding *stream, struct x86_instruction *instruction, uint8_t opcode) {
    struct x86_encoding before = *stream;
    set_size(instruction, stream, !(opcode & 1));
    int reg = rift_hvf_x86_memory_operand(stream, instruction);
    if (opcode >= 0xFE) {
        instruction->operation = reg == 0 ? OP_INCREMENT : OP_DECREMENT;
        return reg == 0 || reg == 1 ? 0 : -1;
    }
    if (reg == 2 || reg == 3) {
        instruction->operation = reg == 2 ? OP_NOT : OP_NEGATE;
        return 0;
    }
    if (reg != 0 && reg != 1)
        return -1;
    *stream = before;
    instruction->operation = OP_TEST;
    return with_immediate(stream, instruction, !(opcode & 1), 0) < 0 ? -1 : 0;
}

static int decode_one_byte(struct x86_encoding *stream, struct x86_instruction *instruction, uint8_t opcode) {
    int reg;
    if (opcode < 0x40 && (opcode & 7) < 4) /* the 8 operations, to memory and to the register */
        return with_register(stream, instruction, arithmetic[opcode >> 3],
                             opcode & 2 ? TO_REGISTER_FROM_MEMORY : TO_MEMORY_FROM_REGISTER, !(opcode & 1));
    switch (opcode) {
    case 0x63: /* MOVSXD; with 16 bits the manuals disagree about what it reads, and nobody writes it */
        if (with_register(stream, instruction, OP_LOAD_SIGNED, 0, 0) || instruction->width == 2)
            return -1;
        instruction->size = 4;
        return 0;
    case 0x6C:
    case 0x6D:
    case 0x6E:
    case 0x6F:
        decode_string(stream, instruction, opcode < 0x6E ? OP_INPUT_STRING : OP_OUTPUT_STRING, !(opcode & 1));
        if (instruction->size == 8) /* ports have no 8 bytes; what both prefixes mean is told in different ways */
            instruction->size = instruction->width = 4;
        return stream->operand16 && stream->rex & 8 ? -1 : 0;
    case 0x80:
    case 0x81:
    case 0x83:
        reg = with_immediate(stream, instruction, opcode == 0x80, opcode == 0x83);
        if (reg < 0)
            return -1;
        instruction->operation = arithmetic[reg];
        return 0;
    case 0x84:
    case 0x85:
        return with_register(stream, instruction, OP_TEST, TO_MEMORY_FROM_REGISTER, !(opcode & 1));
    case 0x86:
    case 0x87:
        return with_register(stream, instruction, OP_EXCHANGE, TO_MEMORY_FROM_REGISTER, !(opcode & 1));
    case 0x88:
    case 0x89:
        return with_register(stream, instruction, OP_STORE, 0, !(opcode & 1));
    case 0x8A:
    case 0x8B:
        return with_register(stream, instruction, OP_LOAD, 0, !(opcode & 1));
    case 0xA0:
    case 0xA1:
    case 0xA2:
    case 0xA3:
        return decode_absolute(stream, instruction, opcode);
    case 0xA4:
    case 0xA5:
        return decode_string(stream, instruction, OP_MOVE_STRING, !(opcode & 1));
    case 0xAA:
    case 0xAB:
        return decode_string(stream, instruction, OP_STORE_STRING, !(opcode & 1));
    case 0xAC:
    case 0xAD:
        return decode_string(stream, instruction, OP_LOAD_STRING, !(opcode & 1));
    case 0xC6:
    case 0xC7:
        instruction->operation = OP_STORE_IMMEDIATE;
        return with_immediate(stream, instruction, !(opcode & 1), 0) == 0 ? 0 : -1;
    case 0xF6:
    case 0xF7:
    case 0xFE:
    case 0xFF:
        return decode_unary(stream, instruction, opcode);
    default:
        return -1;
    }
}

/* A vector load or store of `size` bytes. */
static int with_vector(struct x86_encoding *stream, struct x86_instruction *instruction, int store, uint8_t size) {
    int reg = rift_hvf_x86_memory_operand(stream, instruction);
    if (reg < 0)
        return -1;
    instruction->reg = (uint8_t)((uint32_t)reg | (stream->rex & 4) << 1);
    instruction->operation = store ? OP_STORE_VECTOR : OP_LOAD_VECTOR;
    instruction->size = size;
    instruction->width = 16;
    return 0;
}

/* The moves of SSE and SSE2; which one it is depends on the prefix: SDM volume 2, table A-3. */
static int decode_vector(struct x86_encoding *stream, struct x86_instruction *instruction, uint8_t opcode) {
    const int none = !stream->operand16 && !stream->rep && !stream->repne;
    const int wide = none || (stream->operand16 && !stream->rep && !stream->repne);
    switch (opcode) {
    case 0x10: /* MOVUPS, MOVUPD, MOVSS, MOVSD */
    case 0x11:
        return with_vector(stream, instruction, opcode & 1, stream->rep ? 4 : stream->repne ? 8 : 16);
    case 0x28: /* MOVAPS, MOVAPD; MOVNTPS, MOVNTPD */
    case 0x29:
    case 0x2B:
        return wide ? with_vector(stream, instruction, opcode & 1, 16) : -1;
    case 0x6E: /* MOVD, MOVQ */
        return stream->operand16 && wide ? with_vector(stream, instruction, 0, stream->rex & 8 ? 8 : 4) : -1;
    case 0x7E:
        if (stream->rep)
            return with_vector(stream, instruction, 0, 8);
        return stream->operand16 && wide ? with_vector(stream, instruction, 1, stream->rex & 8 ? 8 : 4) : -1;
    case 0x6F: /* MOVDQA, MOVDQU */
    case 0x7F:
        if (stream->repne || none)
            return -1;
        return with_vector(stream, instruction, opcode == 0x7F, 16);
    case 0xD6: /* MOVQ */
        return stream->operand16 && wide ? with_vector(stream, instruction, 1, 8) : -1;
    case 0xE7: /* MOVNTDQ */
        return stream->operand16 && wide ? with_vector(stream, instruction, 1, 16) : -1;
    default:
        return -1;
    }
}

static int decode_two_byte(struct x86_encoding *stream, struct x86_instruction *instruction) {
    static const uint8_t bit_operations[4] = {OP_BIT_TEST, OP_BIT_SET, OP_BIT_RESET, OP_BIT_COMPLEMENT};
    uint8_t opcode = rift_hvf_x86_next_byte(stream);
    int reg;
    if (opcode >= 0x90 && opcode <= 0x9F) { /* SETcc */
        instruction->size = instruction->width = 1;
        instruction->operation = OP_STORE_FLAG;
        instruction->condition = opcode & 15;
        return rift_hvf_x86_memory_operand(stream, instruction) < 0 ? -1 : 0;
    }
    switch (opcode) {
    case 0xB6: /* MOVZX, MOVSX */
    case 0xB7:
    case 0xBE:
    case 0xBF:
        if (with_register(stream, instruction, opcode < 0xB8 ? OP_LOAD : OP_LOAD_SIGNED, 0, 0))
            return -1;
        instruction->size = opcode & 1 ? 2 : 1;
        return 0;
    case 0xB0:
    case 0xB1:
        return with_register(stream, instruction, OP_COMPARE_EXCHANGE, TO_MEMORY_FROM_REGISTER, !(opcode & 1));
    case 0xC0:
    case 0xC1:
        return with_register(stream, instruction, OP_EXCHANGE_ADD, TO_MEMORY_FROM_REGISTER, !(opcode & 1));
    case 0xBA: /* group 8: bit operations with an immediate */
        reg = with_immediate(stream, instruction, 0, 1);
        if (reg < 4)
            return -1;
        instruction->operation = bit_operations[reg - 4];
        instruction->immediate &= 8u * instruction->size - 1;
        return 0;
    case 0xC3: /* MOVNTI */
        if (stream->operand16 || stream->rep || stream->repne)
            return -1;
        return with_register(stream, instruction, OP_STORE, 0, 0);
    default:
        return decode_vector(stream, instruction, opcode);
    }
}

/* LOCK is for operations that read, change and write memory: SDM volume 2, LOCK. */
static int may_be_locked(const struct x86_instruction *instruction) {
    switch (instruction->operation) {
    case OP_ADD:
    case OP_OR:
    case OP_ADC:
    case OP_SBB:
    case OP_AND:
    case OP_SUB:
    case OP_XOR:
        return instruction->direction != TO_REGISTER_FROM_MEMORY;
    case OP_INCREMENT:
    case OP_DECREMENT:
    case OP_NOT:
    case OP_NEGATE:
    case OP_EXCHANGE:
    case OP_EXCHANGE_ADD:
    case OP_COMPARE_EXCHANGE:
    case OP_BIT_SET:
    case OP_BIT_RESET:
    case OP_BIT_COMPLEMENT:
        return 1;
    default:
        return 0;
    }
}

int rift_hvf_x86_instruction(const uint8_t *code, uint32_t bytes, struct x86_instruction *instruction) {
    struct x86_encoding stream = {.code = code, .bytes = bytes > 15 ? 15 : bytes, .segment = NO_REGISTER};
    memset(instruction, 0, sizeof(*instruction));
    instruction->base = instruction->index = NO_REGISTER;
    uint8_t opcode = rift_hvf_x86_prefixes(&stream);
    int status = opcode == 0x0F ? decode_two_byte(&stream, instruction) : decode_one_byte(&stream, instruction, opcode);
    if (stream.short_of_bytes)
        return bytes < 15 ? 1 : -1;
    if (status || (stream.lock && !may_be_locked(instruction)))
        return -1;
    instruction->length = (uint8_t)stream.at;
    instruction->segment = stream.segment == NO_REGISTER ? SEGMENT_DS : stream.segment;
    instruction->address_size = stream.address32 ? 4 : 8;
    return 0;
}
