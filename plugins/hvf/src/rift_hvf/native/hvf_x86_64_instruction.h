/* Instructions that access memory, as far as a device needs them: what MMIO and string I/O consist of. */
#ifndef RIFT_HVF_X86_64_INSTRUCTION_H
#define RIFT_HVF_X86_64_INSTRUCTION_H

#include <stdint.h>

enum x86_operation {
    OP_NONE,
    OP_LOAD,         /* register = memory, zero-extended */
    OP_LOAD_SIGNED,  /* register = memory, sign-extended */
    OP_LOAD_VECTOR,  /* vector register = memory, the rest zero */
    OP_STORE,        /* memory = register */
    OP_STORE_VECTOR, /* memory = vector register */
    OP_STORE_IMMEDIATE,
    OP_STORE_FLAG,   /* SETcc; `condition` */
    OP_ADD, OP_OR, OP_ADC, OP_SBB, OP_AND, OP_SUB, OP_XOR, OP_COMPARE, OP_TEST, /* 7 to 14, as `direction` says */
    OP_INCREMENT, OP_DECREMENT, OP_NOT, OP_NEGATE,
    OP_EXCHANGE, OP_EXCHANGE_ADD, OP_COMPARE_EXCHANGE,
    OP_BIT_TEST, OP_BIT_SET, OP_BIT_RESET, OP_BIT_COMPLEMENT, /* with the bit number in `immediate` */
    OP_MOVE_STRING, OP_STORE_STRING, OP_LOAD_STRING, OP_INPUT_STRING, OP_OUTPUT_STRING
};

/* Where the other operand of an arithmetic operation is, and where its result goes. */
enum x86_direction { TO_MEMORY_FROM_REGISTER, TO_MEMORY_FROM_IMMEDIATE, TO_REGISTER_FROM_MEMORY };

#define NO_REGISTER 0xFF

struct x86_instruction {
    uint8_t length;
    uint8_t operation; /* enum x86_operation */
    uint8_t direction; /* enum x86_direction */
    uint8_t size;      /* of the access: 1, 2, 4, 8 or 16 bytes */
    uint8_t width;     /* of the register: 1, 2, 4, 8 or 16 bytes */
    uint8_t reg;       /* 0 to 15, the manual's encoding */
    uint8_t high;      /* the register is AH, CH, DH or BH */
    uint8_t condition; /* of SETcc: the low 4 bits of the opcode */
    uint8_t repeated;  /* REP */
    uint8_t address_size; /* 4 or 8 */
    uint8_t segment;   /* enum x86_segment that the address uses */
    uint8_t base, index, scale; /* registers, or NO_REGISTER; scale as a shift */
    uint8_t rip_relative;
    uint64_t immediate;    /* sign-extended */
    uint64_t displacement; /* sign-extended; the whole address of the MOVs with an absolute one */
};

/* Decodes a 64-bit mode instruction that accesses memory, from at most `bytes` (15) bytes. Returns 0; 1: more
 * bytes are needed; -1: it is none that can be carried out here. */
int rift_hvf_x86_instruction(const uint8_t *code, uint32_t bytes, struct x86_instruction *instruction);

/* The result of an arithmetic operation on `size` bytes, and its flags in *flags (RFLAGS_ARITHMETIC). */
uint64_t rift_hvf_x86_arithmetic(uint32_t operation, uint32_t size, uint64_t left, uint64_t right, uint64_t *flags);

/* Whether condition code `condition` holds: SDM volume 1, appendix B. */
int rift_hvf_x86_condition(uint32_t condition, uint64_t flags);

#endif
