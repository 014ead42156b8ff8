/* What the instructions of hvf_x86_64_instruction.c compute: results and flags, as Intel SDM volume 1, 3.4.3 and the
 * pages of volume 2 say. Tests compare it with the CPU itself. */
#include "hvf_x86_64_instruction.h"

#define FLAG_CARRY UINT64_C(1)
#define FLAG_PARITY UINT64_C(4)
#define FLAG_ADJUST UINT64_C(0x10)
#define FLAG_ZERO UINT64_C(0x40)
#define FLAG_SIGN UINT64_C(0x80)
#define FLAG_OVERFLOW UINT64_C(0x800)

static uint64_t mask_of(uint32_t size) {
    return size >= 8 ? ~UINT64_C(0) : (UINT64_C(1) << 8 * size) - 1;
}

static uint64_t sign_of(uint32_t size) {
    return UINT64_C(1) << (8 * size - 1);
}

/* The flags that follow from the result alone: SDM volume 1, 3.4.3.1. */
static uint64_t result_flags(uint32_t size, uint64_t result) {
    uint64_t flags = 0;
    uint32_t low = (uint32_t)(result & 0xFF);
    low ^= low >> 4;
    low ^= low >> 2;
    low ^= low >> 1;
    if (!(low & 1))
        flags |= FLAG_PARITY;
    if (!result)
        flags |= FLAG_ZERO;
    if (result & sign_of(size))
        flags |= FLAG_SIGN;
    return flags;
}

static uint64_t add(uint32_t size, uint64_t left, uint64_t right, uint64_t carry, uint64_t *flags) {
    uint64_t result = (left + right + carry) & mask_of(size);
    *flags = result_flags(size, result) | ((left ^ right ^ result) & FLAG_ADJUST);
    if (result < left || (carry && result == left))
        *flags |= FLAG_CARRY;
    if (~(left ^ right) & (left ^ result) & sign_of(size))
        *flags |= FLAG_OVERFLOW;
    return result;
}

static uint64_t subtract(uint32_t size, uint64_t left, uint64_t right, uint64_t borrow, uint64_t *flags) {
    uint64_t result = (left - right - borrow) & mask_of(size);
    *flags = result_flags(size, result) | ((left ^ right ^ result) & FLAG_ADJUST);
    if (left < right || (borrow && left == right))
        *flags |= FLAG_CARRY;
    if ((left ^ right) & (left ^ result) & sign_of(size))
        *flags |= FLAG_OVERFLOW;
    return result;
}

static uint64_t logic(uint32_t size, uint64_t result, uint64_t *flags) {
    *flags = result_flags(size, result); /* carry and overflow are cleared, adjust is undefined */
    return result;
}

static uint64_t bit_operation(uint32_t operation, uint64_t left, uint64_t bit, uint64_t *flags) {
    uint64_t mask = UINT64_C(1) << bit;
    *flags = (*flags & ~FLAG_CARRY) | (left & mask ? FLAG_CARRY : 0);
    switch (operation) {
    case OP_BIT_SET:
        return left | mask;
    case OP_BIT_RESET:
        return left & ~mask;
    case OP_BIT_COMPLEMENT:
        return left ^ mask;
    default: /* OP_BIT_TEST */
        return left;
    }
}

uint64_t rift_hvf_x86_arithmetic(uint32_t operation, uint32_t size, uint64_t left, uint64_t right, uint64_t *flags) {
    uint64_t carry = *flags & FLAG_CARRY;
    left &= mask_of(size);
    right &= mask_of(size);
    uint64_t result;
    switch (operation) {
    case OP_ADD:
    case OP_EXCHANGE_ADD:
        return add(size, left, right, 0, flags);
    case OP_ADC:
        return add(size, left, right, carry, flags);
    case OP_SUB:
    case OP_COMPARE:
    case OP_COMPARE_EXCHANGE:
        return subtract(size, left, right, 0, flags);
    case OP_SBB:
        return subtract(size, left, right, carry, flags);
    case OP_AND:
    case OP_TEST:
        return logic(size, left & right, flags);
    case OP_OR:
        return logic(size, left | right, flags);
    case OP_XOR:
        return logic(size, left ^ right, flags);
    case OP_INCREMENT: /* INC and DEC leave the carry alone */
        result = add(size, left, 1, 0, flags);
        *flags = (*flags & ~FLAG_CARRY) | carry;
        return result;
    case OP_DECREMENT:
        result = subtract(size, left, 1, 0, flags);
        *flags = (*flags & ~FLAG_CARRY) | carry;
        return result;
    case OP_NEGATE:
        return subtract(size, 0, left, 0, flags);
    case OP_NOT:
        return ~left & mask_of(size);
    default:
        return bit_operation(operation, left, right, flags);
    }
}

int rift_hvf_x86_condition(uint32_t condition, uint64_t flags) {
    const int sign_differs = !(flags & FLAG_SIGN) != !(flags & FLAG_OVERFLOW);
    int holds;
    switch (condition >> 1) {
    case 0:
        holds = (flags & FLAG_OVERFLOW) != 0;
        break;
    case 1:
        holds = (flags & FLAG_CARRY) != 0;
        break;
    case 2:
        holds = (flags & FLAG_ZERO) != 0;
        break;
    case 3:
        holds = (flags & (FLAG_CARRY | FLAG_ZERO)) != 0;
        break;
    case 4:
        holds = (flags & FLAG_SIGN) != 0;
        break;
    case 5:
        holds = (flags & FLAG_PARITY) != 0;
        break;
    case 6:
        holds = sign_differs;
        break;
    default:
        holds = sign_differs || (flags & FLAG_ZERO);
        break;
    }
    return holds != (int)(condition & 1);
}
