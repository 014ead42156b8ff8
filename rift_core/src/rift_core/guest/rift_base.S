/* Where the payload starts: a symbol for the linker script, since not every linker takes one on its command line. */
#ifndef __MACH__ /* whose linkers take no script */
    .globl rift_base
    .set rift_base, RIFT_BASE
#endif
