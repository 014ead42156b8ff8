/* What assembler for ELF and for Mach-O spell differently. The runtime's own .S files include this. */
#ifndef RIFT_ASSEMBLER_H
#define RIFT_ASSEMBLER_H

#ifdef __MACH__
#define RIFT_C(name) _##name                          /* a name that C knows */
#define RIFT_LOCAL(name) L##name                      /* one that stays in its file */
#define RIFT_GLOBAL(name) .private_extern _##name
#define RIFT_CODE(place) .text
#define RIFT_FUNCTION(name)
#define RIFT_END(name)
#define RIFT_END_OF_FILE
#define RIFT_UNWIND_SECTIONS
#define RIFT_UNWIND(...)
#else
#define RIFT_C(name) name
#define RIFT_LOCAL(name) .L##name
#define RIFT_GLOBAL(name) .globl name
#define RIFT_CODE(place) .section place, "ax", %progbits
#define RIFT_FUNCTION(name) .type name, %function
#define RIFT_END(name) .size name, . - name
/* How debuggers find the caller: RIFT_UNWIND(def_cfa_offset 16) is the directive .cfi_def_cfa_offset. It goes where
 * debug information is, which takes no memory in the guest. */
#define RIFT_UNWIND_SECTIONS .cfi_sections .debug_frame
#define RIFT_UNWIND(...) .cfi_##__VA_ARGS__
#define RIFT_END_OF_FILE .section .note.GNU-stack, "", %progbits
#endif

#endif
