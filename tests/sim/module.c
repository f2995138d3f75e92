// One copy of the library per simulated process, so that they share nothing.  A copy is used by one
// process after the other: its data are put back to what they were when it was loaded.
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api.h"
#include "sim.h"

enum { MODULES_MAX = 8 };

static struct sim_module modules[MODULES_MAX];
static size_t num_modules;
static char folder[] = "/tmp/llm-sim-XXXXXX";

// Sanitizers guard what stands between the variables.
__attribute__((no_sanitize("address", "undefined"),
               optimize("no-tree-loop-distribute-patterns"))) void
sim_copy_raw(void *to, const void *from, size_t bytes)
{
    uint8_t *t = to;
    const uint8_t *f = from;
    for (size_t i = 0; i < bytes; i++)
        t[i] = f[i];
}

static void
remove_folder(void)
{
    char path[128];
    for (size_t i = 0; i < num_modules; i++) {
        snprintf(path, sizeof(path), "%s/%zu.so", folder, i);
        unlink(path);
    }
    rmdir(folder);
}

static void
give_up(const char *what, const char *why)
{
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void
copy_library(const char *path)
{
    char bytes[65536];
    size_t got;
    FILE *from = fopen(SIM_MODULE, "rb");
    FILE *to = fopen(path, "wb");
    if (from == NULL || to == NULL)
        give_up(SIM_MODULE, "can't be copied");
    while ((got = fread(bytes, 1, sizeof(bytes), from)) > 0)
        fwrite(bytes, 1, got, to);
    fclose(from);
    if (fclose(to) != 0)
        give_up(path, "can't be written");
}

struct search {
    struct sim_module *module;
    uintptr_t base;
};

static void
note_area(struct sim_module *module, uintptr_t first, uintptr_t end)
{
    if (end <= first)
        return;
    if (module->num_areas == SIM_COUNT(module->areas))
        give_up("the library", "has too many areas of data");
    struct sim_area *area = &module->areas[module->num_areas++];
    area->base = (uint8_t *)first;
    area->bytes = end - first;
    area->fresh = malloc(area->bytes);
    sim_copy_raw(area->fresh, area->base, area->bytes);
}

static int
note_areas(struct dl_phdr_info *info, size_t size, void *arg)
{
    struct search *search = arg;
    (void)size;
    if (info->dlpi_addr != search->base)
        return 0;
    uintptr_t relro_first = 0;
    uintptr_t relro_end = 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type == PT_GNU_RELRO) {
            relro_first = info->dlpi_addr + header->p_vaddr;
            relro_end = (relro_first + header->p_memsz + 4095) & ~(uintptr_t)4095;
        }
        if (header->p_type == PT_TLS)
            search->module->tls_bytes = header->p_memsz;
    }
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        if (header->p_type != PT_LOAD || (header->p_flags & PF_W) == 0)
            continue;
        uintptr_t first = info->dlpi_addr + header->p_vaddr;
        uintptr_t end = first + header->p_memsz;
        if (relro_first >= first && relro_first < end) {
            note_area(search->module, first, relro_first);
            first = relro_end;
        }
        note_area(search->module, first, end);
    }
    return 1;
}

static void
find_tls(struct sim_module *module)
{
    void *tls = NULL;
    if (module->tls_bytes == 0)
        return;
    if (module->tls_bytes > SIM_TLS_MAX)
        give_up("the library", "has more thread-local data than expected");
    // Allocates it, if need be.
    module->api->llm_last_error(NULL, 0);
    if (dlinfo(module->handle, RTLD_DI_TLS_DATA, &tls) != 0 || tls == NULL)
        give_up("dlinfo", "no thread-local data");
    module->tls = tls;
    memcpy(module->tls_fresh, tls, module->tls_bytes);
}

static void
load(struct sim_module *module)
{
    char path[128];
    struct link_map *map;
    snprintf(path, sizeof(path), "%s/%zu.so", folder, num_modules);
    copy_library(path);
    module->handle = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (module->handle == NULL || dlinfo(module->handle, RTLD_DI_LINKMAP, &map) != 0)
        give_up("dlopen", dlerror());
    module->api = calloc(1, sizeof(*module->api));
#define FIND(name)                                                                                 \
    module->api->name = (__typeof__(name) *)dlsym(module->handle, #name);                          \
    if (module->api->name == NULL)                                                                 \
        give_up("dlsym", #name);
    SIM_API_MAP(FIND)
#undef FIND
    struct search search = {.module = module, .base = map->l_addr};
    dl_iterate_phdr(note_areas, &search);
    find_tls(module);
}

struct sim_module *
sim_module_take(void)
{
    if (num_modules == 0) {
        if (mkdtemp(folder) == NULL)
            give_up("mkdtemp", folder);
        atexit(remove_folder);
    }
    for (size_t i = 0; i < MODULES_MAX; i++) {
        struct sim_module *module = &modules[i];
        if (module->busy)
            continue;
        if (i == num_modules) {
            load(module);
            num_modules++;
        }
        module->busy = true;
        for (size_t a = 0; a < module->num_areas; a++)
            sim_copy_raw(module->areas[a].base, module->areas[a].fresh, module->areas[a].bytes);
        return module;
    }
    give_up("the simulation", "has more processes at once than copies of the library");
    return NULL;
}

void
sim_module_give(struct sim_module *module)
{
    module->busy = false;
}
