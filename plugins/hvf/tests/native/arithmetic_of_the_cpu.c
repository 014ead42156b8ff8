/* What the CPU that runs the tests computes: the same operations by its own instructions. */
#include "hvf_x86_64_instruction.h"

#define FLAGS_OUT "pushfq\n\tpopq %[flags]\n\t"
/* RFLAGS as wanted, without a change of the others; below the red zone. */
#define FLAGS_IN "subq $128, %%rsp\n\tpushfq\n\tandq $~0x8d5, (%%rsp)\n\torq %[flags], (%%rsp)\n\tpopfq\n\t"

#define TWO(name, suffix, type)                                                                             \
    static uint64_t name##_##suffix(uint64_t left, uint64_t right, uint64_t *flags) {                        \
        type result = (type)left, other = (type)right;                                                       \
        uint64_t word = *flags;                                                                              \
        __asm__ volatile(FLAGS_IN #name " %[other], %[result]\n\t" FLAGS_OUT "leaq 128(%%rsp), %%rsp"        \
                         : [result] "+r"(result), [flags] "+r"(word)                                         \
                         : [other] "r"(other)                                                                \
                         : "cc", "memory");                                                                  \
        *flags = word;                                                                                       \
        return result;                                                                                       \
    }
#define ONE(name, suffix, type)                                                                             \
    static uint64_t name##_##suffix(uint64_t left, uint64_t right, uint64_t *flags) {                        \
        type result = (type)left;                                                                            \
        uint64_t word = *flags;                                                                              \
        (void)right;                                                                                         \
        __asm__ volatile(FLAGS_IN #name " %[result]\n\t" FLAGS_OUT "leaq 128(%%rsp), %%rsp"                  \
                         : [result] "+r"(result), [flags] "+r"(word)                                         \
                         :                                                                                   \
                         : "cc", "memory");                                                                  \
        *flags = word;                                                                                       \
        return result;                                                                                       \
    }
#define WIDTHS(kind, name) kind(name, 2, uint16_t) kind(name, 4, uint32_t) kind(name, 8, uint64_t)
#define ALL(kind, name) kind(name, 1, uint8_t) WIDTHS(kind, name)

ALL(TWO, add) ALL(TWO, or) ALL(TWO, adc) ALL(TWO, sbb) ALL(TWO, and) ALL(TWO, sub) ALL(TWO, xor) ALL(TWO, cmp)
ALL(TWO, test) ALL(ONE, inc) ALL(ONE, dec) ALL(ONE, not) ALL(ONE, neg)
WIDTHS(TWO, bt) WIDTHS(TWO, bts) WIDTHS(TWO, btr) WIDTHS(TWO, btc)

typedef uint64_t operation(uint64_t left, uint64_t right, uint64_t *flags);

#define ROW(name) {name##_1, name##_2, name##_4, name##_8}
#define WIDE_ROW(name) {0, name##_2, name##_4, name##_8}

uint64_t arithmetic_of_the_cpu(uint32_t number, uint32_t size, uint64_t left, uint64_t right, uint64_t *flags) {
    static operation *const table[][4] = {
        [OP_ADD] = ROW(add), [OP_OR] = ROW(or), [OP_ADC] = ROW(adc), [OP_SBB] = ROW(sbb), [OP_AND] = ROW(and),
        [OP_SUB] = ROW(sub), [OP_XOR] = ROW(xor), [OP_COMPARE] = ROW(cmp), [OP_TEST] = ROW(test),
        [OP_INCREMENT] = ROW(inc), [OP_DECREMENT] = ROW(dec), [OP_NOT] = ROW(not), [OP_NEGATE] = ROW(neg),
        [OP_EXCHANGE_ADD] = ROW(add), [OP_COMPARE_EXCHANGE] = ROW(cmp), [OP_BIT_TEST] = WIDE_ROW(bt),
        [OP_BIT_SET] = WIDE_ROW(bts), [OP_BIT_RESET] = WIDE_ROW(btr), [OP_BIT_COMPLEMENT] = WIDE_ROW(btc),
    };
    uint64_t result = table[number][size == 1 ? 0 : size == 2 ? 1 : size == 4 ? 2 : 3](left, right, flags);
    if (number == OP_COMPARE || number == OP_COMPARE_EXCHANGE) /* the difference, which the instruction throws away */
        return left - right;
    if (number == OP_TEST)
        return left & right;
    return result;
}
