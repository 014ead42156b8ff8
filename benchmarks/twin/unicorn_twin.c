/* The bare engine, for benchmarks of the emulator backend: the same guest code through the engine's own C interface,
 * without Rift. The library is opened at run time, as the plugin does. */
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct twin_engine {
    void *engine;
    int (*reg_write)(void *engine, int id, const void *value);
    int (*reg_read)(void *engine, int id, void *value);
    int (*emu_start)(void *engine, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int (*emu_stop)(void *engine);
    int (*close)(void *engine);
    uint64_t stops;
};

enum { ARCHITECTURE_X86 = 4, MODE_64 = 8, READ_WRITE_EXECUTE = 7, HOOK_INSTRUCTION = 2, INSTRUCTION_OUT = 500 };
enum { RIP = 41, RSP = 44, CR0 = 50, CR3 = 53, CR4 = 54, MSR = 248 };
enum { CONTROL_USE_EXITS = 1 << 30 | 1 << 26 | 4 };

struct msr {
    uint32_t number;
    uint64_t value;
};

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * UINT64_C(1000000000) + (uint64_t)time.tv_nsec;
}

static void count_out(void *engine, uint32_t port, int size, uint32_t value, void *context) {
    struct twin_engine *twin = context;
    (void)port;
    (void)size;
    (void)value;
    twin->stops += 1;
    twin->emu_stop(engine);
}

/* An engine with `bytes` of memory at guest-physical `gpa`, paging on as Rift has it; ports stop it. NULL: failed. */
struct twin_engine *twin_engine_open(const char *path, uint64_t gpa, void *memory, uint64_t bytes, uint64_t cr0,
                                     uint64_t cr3, uint64_t cr4, uint64_t efer) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    struct twin_engine *twin = calloc(1, sizeof(*twin));
    if (!library || !twin)
        return NULL;
    int (*open)(int, int, void **) = (int (*)(int, int, void **))dlsym(library, "uc_open");
    int (*map)(void *, uint64_t, uint64_t, uint32_t, void *) =
        (int (*)(void *, uint64_t, uint64_t, uint32_t, void *))dlsym(library, "uc_mem_map_ptr");
    int (*control)(void *, int, ...) = (int (*)(void *, int, ...))dlsym(library, "uc_ctl");
    int (*hook_add)(void *, size_t *, int, void *, void *, uint64_t, uint64_t, ...) =
        (int (*)(void *, size_t *, int, void *, void *, uint64_t, uint64_t, ...))dlsym(library, "uc_hook_add");
    twin->reg_write = (int (*)(void *, int, const void *))dlsym(library, "uc_reg_write");
    twin->reg_read = (int (*)(void *, int, void *))dlsym(library, "uc_reg_read");
    twin->emu_start = (int (*)(void *, uint64_t, uint64_t, uint64_t, size_t))dlsym(library, "uc_emu_start");
    twin->emu_stop = (int (*)(void *))dlsym(library, "uc_emu_stop");
    twin->close = (int (*)(void *))dlsym(library, "uc_close");
    size_t hook;
    const struct msr msr = {0xC0000080, efer};
    if (open(ARCHITECTURE_X86, MODE_64, &twin->engine) || control(twin->engine, CONTROL_USE_EXITS, 1) ||
        map(twin->engine, gpa, bytes, READ_WRITE_EXECUTE, memory) ||
        hook_add(twin->engine, &hook, HOOK_INSTRUCTION, (void *)count_out, twin, 1, 0, INSTRUCTION_OUT))
        return NULL;
    twin->reg_write(twin->engine, CR3, &cr3);
    twin->reg_write(twin->engine, CR4, &cr4);
    twin->reg_write(twin->engine, MSR, &msr);
    twin->reg_write(twin->engine, CR0, &cr0);
    return twin;
}

void twin_engine_close(struct twin_engine *twin) {
    twin->close(twin->engine);
    free(twin);
}

/* Runs code at `rip` until it halts: nanoseconds, or 0 if the engine fails. */
uint64_t twin_engine_run(struct twin_engine *twin, uint64_t rip, uint64_t rsp) {
    twin->reg_write(twin->engine, RSP, &rsp);
    uint64_t begin = now();
    int status = twin->emu_start(twin->engine, rip, 0, 0, 0);
    return status ? 0 : now() - begin;
}

/* `count` times: run to a HLT, and start again: the cheapest way to leave the engine and come back. Nanoseconds. */
uint64_t twin_engine_halts(struct twin_engine *twin, uint64_t rip, uint64_t count) {
    uint64_t begin = now();
    for (uint64_t at = 0; at < count; ++at)
        if (twin->emu_start(twin->engine, rip, 0, 0, 0))
            return 0;
    return now() - begin;
}

/* The same with an OUT, whose hook stops the engine, and the program counter read for going on. */
uint64_t twin_engine_ports(struct twin_engine *twin, uint64_t rip, uint64_t count) {
    uint64_t begin = now(), stops = twin->stops;
    for (uint64_t at = 0; at < count; ++at) {
        if (twin->emu_start(twin->engine, rip, 0, 0, 0))
            return 0;
        twin->reg_read(twin->engine, RIP, &rip);
    }
    return twin->stops - stops == count ? now() - begin : 0;
}
