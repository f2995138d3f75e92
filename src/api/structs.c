#include "api/structs.h"

#include "base/log.h"

static size_t
callers_bytes(const void *caller, size_t first_bytes)
{
    size_t bytes;
    memcpy(&bytes, caller, sizeof(bytes));
    return bytes == 0 ? first_bytes : bytes;
}

llm_status
lli_check_struct(const void *caller, const char *name, size_t first_bytes, size_t known_bytes,
                 void *ret)
{
    if (caller == NULL)
        return lli_fail(LLM_PARAM_INVALID, "api", "%s is NULL", name);
    size_t caller_bytes = callers_bytes(caller, first_bytes);
    if (caller_bytes < first_bytes || caller_bytes > 65536)
        return lli_fail(LLM_PARAM_INVALID, "api", "%s.struct_size is %zu, expected 0 or %zu..65536",
                        name, caller_bytes, first_bytes);
    for (size_t i = known_bytes; i < caller_bytes; i++) {
        if (((const uint8_t *)caller)[i] != 0)
            return lli_fail(LLM_PARAM_INVALID, "api",
                            "%s has fields that this version doesn't know: byte %zu is not zero",
                            name, i);
    }
    memset(ret, 0, known_bytes);
    memcpy(ret, caller, lli_min(caller_bytes, known_bytes));
    return LLM_SUCCESS;
}

void
lli_write_struct(const void *known, size_t first_bytes, size_t known_bytes, void *caller)
{
    size_t bytes = lli_min(callers_bytes(caller, first_bytes), known_bytes);
    size_t begin = sizeof(size_t); // behind struct_size
    memcpy((char *)caller + begin, (const char *)known + begin, bytes - begin);
}

const void *
lli_struct_at(const void *array, size_t first_bytes, size_t index)
{
    return (const char *)array + index * callers_bytes(array, first_bytes);
}
