/* Copying and filling, 16 bytes at a time. memcpy goes forward and loads each piece before it stores it, which memmove
 * relies on. Only general registers. */
#include "rift_assembler.h"

    RIFT_CODE(.rift.text.memcpy)
    RIFT_GLOBAL(memcpy)
    RIFT_FUNCTION(memcpy)
RIFT_C(memcpy):
    mov x3, x0
    subs x2, x2, #16
    b.lo 2f
1:  ldp x4, x5, [x1], #16
    subs x2, x2, #16
    stp x4, x5, [x3], #16
    b.hs 1b
2:  adds x2, x2, #16
    b.eq 4f
3:  ldrb w4, [x1], #1
    subs x2, x2, #1
    strb w4, [x3], #1
    b.ne 3b
4:  ret
    RIFT_END(memcpy)

    RIFT_CODE(.rift.text.memset)
    RIFT_GLOBAL(memset)
    RIFT_FUNCTION(memset)
RIFT_C(memset):
    mov x3, x0
    mov x5, #0x0101010101010101
    and x4, x1, #0xff
    mul x4, x4, x5
    subs x2, x2, #16
    b.lo 2f
1:  subs x2, x2, #16
    stp x4, x4, [x3], #16
    b.hs 1b
2:  adds x2, x2, #16
    b.eq 4f
3:  subs x2, x2, #1
    strb w4, [x3], #1
    b.ne 3b
4:  ret
    RIFT_END(memset)

    RIFT_END_OF_FILE
