/* The bytes of an instruction, read one after the other: Intel SDM volume 2, 2.1 (format). */
#ifndef RIFT_HVF_X86_64_ENCODING_H
#define RIFT_HVF_X86_64_ENCODING_H

#include "hvf_x86_64_instruction.h"

/* What is left of the instruction's bytes, and its prefixes. */
struct x86_encoding {
    const uint8_t *code;
    uint32_t bytes, at;
    uint8_t rex, operand16, address32, rep, repne, lock;
    uint8_t segment; /* NO_REGISTER: the default of the operand */
    uint8_t short_of_bytes;
};

/* The next byte; 0 behind the end. */
uint8_t rift_hvf_x86_next_byte(struct x86_encoding *stream);
/* A little-endian number of 1, 2, 4 or 8 bytes, sign-extended. */
uint64_t rift_hvf_x86_next_signed(struct x86_encoding *stream, uint32_t size);
/* Legacy prefixes and REX, which counts only directly before the opcode. Returns the opcode's first byte. */
uint8_t rift_hvf_x86_prefixes(struct x86_encoding *stream);
/* ModRM, SIB and displacement: SDM volume 2, 2.1.5 and 2.2.1. Returns the reg field without REX.R; -1: the operand
 * is a register. */
int rift_hvf_x86_memory_operand(struct x86_encoding *stream, struct x86_instruction *instruction);

#endif
