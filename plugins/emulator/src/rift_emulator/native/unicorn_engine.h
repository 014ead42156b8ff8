/* The part of the Unicorn engine's C interface that Rift uses, declared here and bound at run time.
 *
 * The engine's shared library belongs to the Python package `unicorn` and is opened by its path, so that this
 * extension neither links against it nor needs its headers. Names follow the engine's documentation with the
 * prefix uc_ dropped; numbers are those of its public headers for versions 2.1.x. */
#ifndef RIFT_UNICORN_ENGINE_H
#define RIFT_UNICORN_ENGINE_H

#include "rift_abi.h"

#include <stdbool.h>

struct unicorn;         /* uc_engine */
struct unicorn_context; /* uc_context: an opaque header, then a copy of the CPU's state */
typedef size_t unicorn_hook;

enum { UNICORN_ARM64 = 2, UNICORN_X86 = 4 };
enum { UNICORN_MODE_ARM = 0, UNICORN_MODE_64 = 1 << 3 };
enum { UNICORN_READ = 1, UNICORN_WRITE = 2, UNICORN_EXECUTE = 4 };

enum unicorn_hook_type {
    UNICORN_HOOK_INTERRUPT = 1 << 0,
    UNICORN_HOOK_INSTRUCTION = 1 << 1,
    UNICORN_HOOK_CODE = 1 << 2,
    UNICORN_HOOK_BLOCK = 1 << 3,
    UNICORN_HOOK_READ_UNMAPPED = 1 << 4,
    UNICORN_HOOK_WRITE_UNMAPPED = 1 << 5,
    UNICORN_HOOK_FETCH_UNMAPPED = 1 << 6,
    UNICORN_HOOK_READ_PROTECTED = 1 << 7,
    UNICORN_HOOK_WRITE_PROTECTED = 1 << 8,
    UNICORN_HOOK_FETCH_PROTECTED = 1 << 9,
    UNICORN_HOOK_READ = 1 << 10,
    UNICORN_HOOK_WRITE = 1 << 11,
    UNICORN_HOOK_INVALID_INSTRUCTION = 1 << 14,
    UNICORN_HOOK_EDGE = 1 << 15
};

enum unicorn_access {
    UNICORN_ACCESS_READ = 16,
    UNICORN_ACCESS_WRITE = 17,
    UNICORN_ACCESS_READ_UNMAPPED = 19,
    UNICORN_ACCESS_WRITE_UNMAPPED = 20,
    UNICORN_ACCESS_FETCH_UNMAPPED = 21,
    UNICORN_ACCESS_WRITE_PROTECTED = 22,
    UNICORN_ACCESS_READ_PROTECTED = 23,
    UNICORN_ACCESS_FETCH_PROTECTED = 24
};

enum unicorn_error {
    UNICORN_OK = 0,
    UNICORN_ERROR_READ_UNMAPPED = 6,
    UNICORN_ERROR_WRITE_UNMAPPED = 7,
    UNICORN_ERROR_FETCH_UNMAPPED = 8,
    UNICORN_ERROR_INVALID_INSTRUCTION = 10,
    UNICORN_ERROR_WRITE_PROTECTED = 12,
    UNICORN_ERROR_READ_PROTECTED = 13,
    UNICORN_ERROR_FETCH_PROTECTED = 14,
    UNICORN_ERROR_EXCEPTION = 21
};

/* uc_ctl: direction in bits 31:30, number of arguments from bit 26 on, type in the low 16. */
enum unicorn_control {
    UNICORN_CONTROL_WRITE = 1 << 30,
    UNICORN_CONTROL_ARGUMENTS_SHIFT = 26,
    UNICORN_CONTROL_USE_EXITS = 4,
    UNICORN_CONTROL_CPU_MODEL = 7,
    UNICORN_CONTROL_FLUSH_CODE = 10,
    UNICORN_CONTROL_FLUSH_TRANSLATIONS = 11,
    UNICORN_CONTROL_CODE_BUFFER = 13
};

/* A translated block, as the edge hook describes it. */
struct unicorn_block {
    uint64_t pc;
    uint16_t instructions, size;
};

typedef uint64_t unicorn_device_read(struct unicorn *engine, uint64_t offset, unsigned size, void *context);
typedef void unicorn_device_write(struct unicorn *engine, uint64_t offset, unsigned size, uint64_t value,
                                  void *context);

/* The engine's functions. */
struct unicorn_functions {
    unsigned (*version)(unsigned *major, unsigned *minor);
    int (*open)(int architecture, int mode, struct unicorn **engine);
    int (*close)(struct unicorn *engine);
    int (*ctl)(struct unicorn *engine, int control, ...);
    const char *(*strerror)(int error);
    int (*reg_read)(struct unicorn *engine, int id, void *value);
    int (*reg_write)(struct unicorn *engine, int id, const void *value);
    int (*emu_start)(struct unicorn *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int (*emu_stop)(struct unicorn *engine);
    int (*hook_add)(struct unicorn *engine, unicorn_hook *hook, int type, void *callback, void *context,
                    uint64_t begin, uint64_t end, ...);
    int (*hook_del)(struct unicorn *engine, unicorn_hook hook);
    int (*mem_map_ptr)(struct unicorn *engine, uint64_t address, uint64_t size, uint32_t permissions, void *memory);
    int (*mem_unmap)(struct unicorn *engine, uint64_t address, uint64_t size);
    int (*mem_protect)(struct unicorn *engine, uint64_t address, uint64_t size, uint32_t permissions);
    int (*mmio_map)(struct unicorn *engine, uint64_t address, uint64_t size, unicorn_device_read *read,
                    void *read_context, unicorn_device_write *write, void *write_context);
    int (*context_alloc)(struct unicorn *engine, struct unicorn_context **context);
    int (*context_free)(struct unicorn_context *context);
    size_t (*context_size)(struct unicorn *engine);
    int (*context_save)(struct unicorn *engine, struct unicorn_context *context);
    int (*context_restore)(struct unicorn *engine, struct unicorn_context *context);
    int (*context_reg_read)(struct unicorn_context *context, int id, void *value);
    int (*context_reg_write)(struct unicorn_context *context, int id, const void *value);
};

/* The functions, once rift_emulator_load has succeeded. */
extern struct unicorn_functions unicorn;

/* Fills in an error from an engine's code: the code is -code, which no errno is. Returns -1. */
int rift_emulator_engine_error(struct rift_error *error, int code, const char *operation);

#endif
