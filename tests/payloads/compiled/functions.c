/* What a compiler makes of ordinary C at -O2, vector and floating-point registers included: each function takes two
 * numbers and gives one that depends on all that it has computed. The host runs the same source for comparison. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

typedef uint64_t u64;

static u64 next(u64 *state) {
    *state = *state * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return *state >> 11;
}

static u64 bits_of(double value) {
    u64 bits;
    __builtin_memcpy(&bits, &value, sizeof(bits));
    return bits;
}

u64 integers(u64 a, u64 b) {
    u64 sum = 0;
    for (u64 at = 1; at < 40; ++at)
        sum += (a / at) ^ (b % (at + 1)) ^ (a << (at & 63)) ^ ((int64_t)b >> at);
    return sum;
}

u64 wide_multiplication(u64 a, u64 b) {
    unsigned __int128 product = (unsigned __int128)a * b;
    return (u64)product ^ (u64)(product >> 64);
}

u64 rotations(u64 a, u64 b) {
    for (int at = 0; at < 64; ++at)
        a = (a << (b & 63) | a >> (-b & 63)) + __builtin_bswap64(b) + (a ? __builtin_ctzll(a) : 64), b = b * 5 + 1;
    return a;
}

u64 doubles(u64 a, u64 b) {
    double x = (double)(a >> 12) + 0.5, y = (double)(int64_t)b * 1e-9, sum = 0;
    for (int at = 1; at < 50; ++at) {
        sum += x / (y + at) - (y > x ? y : x) * 1e-3;
        x = -x * 0.75 + at;
    }
    return bits_of(sum) ^ (u64)(int64_t)(sum * 1e-3);
}

u64 floats(u64 a, u64 b) {
    float values[64], sum = 0;
    for (int at = 0; at < 64; ++at)
        values[at] = (float)(next(&a) & 0xFFFF) * 0.25f;
    for (int at = 0; at < 64; ++at)
        sum += values[at] * (float)((b >> (at & 31)) & 0xFF);
    return bits_of(sum);
}

u64 vectors_of_integers(u64 a, u64 b) {
    uint32_t left[128], right[128];
    for (int at = 0; at < 128; ++at) {
        left[at] = (uint32_t)next(&a);
        right[at] = (uint32_t)next(&b);
    }
    for (int at = 0; at < 128; ++at)
        left[at] = (left[at] * right[at] + (left[at] >> 3)) ^ (left[at] > right[at] ? left[at] : ~right[at]);
    u64 sum = 0;
    for (int at = 0; at < 128; ++at)
        sum = sum * 31 + left[at];
    return sum;
}

u64 vectors_of_doubles(u64 a, u64 b) {
    double left[96], right[96];
    for (int at = 0; at < 96; ++at) {
        left[at] = (double)(next(&a) & 0xFFFFF);
        right[at] = (double)(next(&b) & 0xFFF) + 1;
    }
    for (int at = 0; at < 96; ++at)
        left[at] = left[at] * right[at] - left[at] / right[at];
    double sum = 0;
    for (int at = 0; at < 96; ++at)
        sum += left[at];
    return bits_of(sum);
}

struct record {
    u64 words[9];
    unsigned char bytes[37];
};

static struct record changed(struct record record, u64 by) {
    for (size_t at = 0; at < sizeof(record.bytes); ++at)
        record.bytes[at] = (unsigned char)(record.bytes[at] + by + at);
    record.words[by % 9] ^= by;
    return record;
}

u64 structures(u64 a, u64 b) {
    struct record record = {{0}, {0}}, other = changed(record, a);
    record = changed(other, b);
    u64 sum = 0;
    for (size_t at = 0; at < 9; ++at)
        sum = sum * 7 + record.words[at] + other.words[at];
    for (size_t at = 0; at < sizeof(record.bytes); ++at)
        sum = sum * 3 + record.bytes[at];
    return sum;
}

static u64 total(int count, ...) {
    va_list list;
    va_start(list, count);
    double doubles = 0;
    u64 sum = 0;
    for (int at = 0; at < count; ++at) {
        sum = sum * 9 + va_arg(list, u64);
        doubles += va_arg(list, double);
    }
    va_end(list);
    return sum ^ bits_of(doubles);
}

u64 variable_arguments(u64 a, u64 b) {
    double x = (double)(a & 0xFFFF);
    return total(6, a, x, b, x + 1, a ^ b, x * 2, a + b, 0.5, a - b, -x, ~a, 3.0);
}

static u64 depth(u64 a, u64 b) {
    volatile u64 local[4] = {a, b, a ^ b, 1};
    return a ? depth(a - 1, local[a & 3] + b) + local[b & 3] : b;
}

u64 recursion(u64 a, u64 b) {
    return depth(a & 31, b);
}

u64 decisions(u64 a, u64 b) {
    u64 sum = b;
    for (int at = 0; at < 32; ++at)
        switch (next(&a) % 9) {
        case 0: sum += 3; break;
        case 1: sum ^= a; break;
        case 2: sum *= 5; break;
        case 3: sum -= b; break;
        case 4: sum = ~sum; break;
        case 5: sum = sum << 7 | sum >> 57; break;
        case 6: sum += a & b; break;
        case 7: sum |= 1; break;
        default: sum ^= sum >> 9; break;
        }
    return sum;
}

u64 atomics(u64 a, u64 b) {
    u64 word = a, expected = a;
    __atomic_fetch_add(&word, b, __ATOMIC_SEQ_CST);
    __atomic_compare_exchange_n(&word, &expected, b, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    return word ^ expected ^ __atomic_exchange_n(&word, 5, __ATOMIC_ACQ_REL);
}
