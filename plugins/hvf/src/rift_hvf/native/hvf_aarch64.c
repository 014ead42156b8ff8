#include "hvf_internal.h"
const struct rift_hvf_binding rift_hvf_aarch64 = {.version = RIFT_HVF_BINDING_VERSION, .isa = "aarch64"};
