#include "hvf_x86_64_encoding.h"

#include "hvf_x86_64_constants.h"

uint8_t rift_hvf_x86_next_byte(struct x86_encoding *stream) {
    if (stream->at >= stream->bytes) {
        stream->short_of_bytes = 1;
        return 0;
    }
    return stream->code[stream->at++];
}

uint64_t rift_hvf_x86_next_signed(struct x86_encoding *stream, uint32_t size) {
    uint64_t value = 0;
    for (uint32_t at = 0; at < size; ++at)
        value |= (uint64_t)rift_hvf_x86_next_byte(stream) << 8 * at;
    if (size < 8 && value >> (8 * size - 1))
        value |= ~UINT64_C(0) << 8 * size;
    return value;
}

uint8_t rift_hvf_x86_prefixes(struct x86_encoding *stream) {
    for (;;) {
        uint8_t byte = rift_hvf_x86_next_byte(stream);
        switch (byte) {
        case 0x66:
            stream->operand16 = 1;
            break;
        case 0x67:
            stream->address32 = 1;
            break;
        case 0x26: /* ES, CS, SS, DS: their bases are 0 in 64-bit mode */
        case 0x2E:
        case 0x36:
        case 0x3E:
            break;
        case 0x64:
            stream->segment = SEGMENT_FS;
            break;
        case 0x65:
            stream->segment = SEGMENT_GS;
            break;
        case 0xF0:
            stream->lock = 1;
            break;
        case 0xF2:
            stream->repne = 1;
            stream->rep = 0;
            break;
        case 0xF3:
            stream->rep = 1;
            stream->repne = 0;
            break;
        default:
            if ((byte & 0xF0) != 0x40)
                return byte;
            stream->rex = byte;
            byte = rift_hvf_x86_next_byte(stream);
            if ((byte & 0xF0) != 0x40 && byte != 0x66 && byte != 0x67 && byte != 0xF0 && byte != 0xF2 &&
                byte != 0xF3 && byte != 0x26 && byte != 0x2E && byte != 0x36 && byte != 0x3E && byte != 0x64 &&
                byte != 0x65)
                return byte;
            stream->rex = 0; /* it was not the last prefix */
            stream->at -= !stream->short_of_bytes;
            break;
        }
        if (stream->short_of_bytes)
            return 0;
    }
}

int rift_hvf_x86_memory_operand(struct x86_encoding *stream, struct x86_instruction *instruction) {
    uint8_t modrm = rift_hvf_x86_next_byte(stream);
    uint32_t mode = modrm >> 6, rm = modrm & 7;
    if (mode == 3)
        return -1;
    uint32_t displacement = mode == 1 ? 1 : mode == 2 ? 4 : 0;
    instruction->base = (uint8_t)(rm | (stream->rex & 1) << 3);
    instruction->index = NO_REGISTER;
    if (rm == 4) {
        uint8_t sib = rift_hvf_x86_next_byte(stream);
        uint8_t index = (uint8_t)((sib >> 3 & 7) | (stream->rex & 2) << 2);
        if (index != 4)
            instruction->index = index;
        instruction->scale = sib >> 6;
        instruction->base = (uint8_t)((sib & 7) | (stream->rex & 1) << 3);
        if ((sib & 7) == 5 && mode == 0) {
            instruction->base = NO_REGISTER;
            displacement = 4;
        }
    } else if (rm == 5 && mode == 0) {
        instruction->base = NO_REGISTER;
        instruction->rip_relative = 1;
        displacement = 4;
    }
    if (displacement)
        instruction->displacement = rift_hvf_x86_next_signed(stream, displacement);
    return modrm >> 3 & 7;
}
