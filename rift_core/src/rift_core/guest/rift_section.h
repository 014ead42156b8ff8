/* What the runtime's own C files start with: how a linker finds what nothing refers to and leaves it out, while what
 * the payload itself brings stays whatever happens. */
#ifndef RIFT_SECTION_H
#define RIFT_SECTION_H

#ifdef __MACH__
/* Linkers for Mach-O go by symbols: those that are hidden go (-dead_strip), global ones stay. */
#pragma GCC visibility push(hidden)
#define RIFT_RUNTIME(name)
#else
/* Linkers for ELF go by sections: see payload.ld. */
#define RIFT_RUNTIME(name) __attribute__((section(".rift.text." #name)))
#endif

#endif
