/* Opens the engine's library and looks its functions up. */
#include "emulator.h"
#include "unicorn_engine.h"

#include <dlfcn.h>
#include <errno.h>

struct unicorn_functions unicorn;

/* ISO C has no cast from void * to a function's address; POSIX promises that this works. */
static int look_up(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    *(void **)function = address;
    return address ? 0 : -1;
}

int rift_emulator_load(const char *path, struct rift_error *error) {
    struct unicorn_functions found = {0};
    const struct {
        const char *name;
        void *function;
    } functions[] = {
        {"uc_version", &found.version},
        {"uc_open", &found.open},
        {"uc_close", &found.close},
        {"uc_ctl", &found.ctl},
        {"uc_strerror", &found.strerror},
        {"uc_reg_read", &found.reg_read},
        {"uc_reg_write", &found.reg_write},
        {"uc_emu_start", &found.emu_start},
        {"uc_emu_stop", &found.emu_stop},
        {"uc_hook_add", &found.hook_add},
        {"uc_hook_del", &found.hook_del},
        {"uc_mem_map_ptr", &found.mem_map_ptr},
        {"uc_mem_unmap", &found.mem_unmap},
        {"uc_mem_protect", &found.mem_protect},
        {"uc_mmio_map", &found.mmio_map},
        {"uc_context_alloc", &found.context_alloc},
        {"uc_context_free", &found.context_free},
        {"uc_context_size", &found.context_size},
        {"uc_context_save", &found.context_save},
        {"uc_context_restore", &found.context_restore},
        {"uc_context_reg_read", &found.context_reg_read},
        {"uc_context_reg_write", &found.context_reg_write},
    };
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        error->code = ENOENT;
        error->operation = "dlopen";
        return -1;
    }
    for (size_t at = 0; at < sizeof(functions) / sizeof(functions[0]); ++at)
        if (look_up(library, functions[at].name, functions[at].function)) {
            error->code = ENOSYS;
            error->operation = functions[at].name;
            dlclose(library);
            return -1;
        }
    unicorn = found; /* the library stays open for the life of the process */
    return 0;
}

uint32_t rift_emulator_engine_version(void) {
    return unicorn.version ? unicorn.version(NULL, NULL) : 0;
}

const char *rift_emulator_engine_message(int code) {
    return unicorn.strerror && code < 0 ? unicorn.strerror(-code) : "";
}

int rift_emulator_engine_error(struct rift_error *error, int code, const char *operation) {
    error->code = -code;
    error->operation = operation;
    return -1;
}

int rift_emulator_fail(struct rift_error *error, int code, const char *operation) {
    error->code = code;
    error->operation = operation;
    return -1;
}
