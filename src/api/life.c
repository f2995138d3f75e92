// Life cycle (§5).
#include "api/check.h"

#include <unistd.h>

#include "base/fork.h"
#include "base/lock.h"
#include "base/log.h"
#include "base/mem.h"

llm_status
llm_create(uint64_t cluster_id, llm_role role, llm_datadist **ret_dd)
{
    if (ret_dd == NULL)
        return lli_fail(LLM_PARAM_INVALID, "api", "llm_create: ret_dd is NULL");
    struct llm_datadist *dd = lli_calloc(1, sizeof(*dd));
    if (dd == NULL)
        return lli_fail(LLM_OUT_OF_MEMORY, "api", "llm_create: out of memory");
    dd->cluster_id = cluster_id;
    atomic_init(&dd->role, (int)role);
    pthread_mutex_init(&dd->life_lock, NULL);
    *ret_dd = dd;
    return LLM_SUCCESS;
}

void
llm_destroy(llm_datadist *dd)
{
    if (dd == NULL)
        return;
    llm_finalize(dd);
    pthread_mutex_destroy(&dd->life_lock);
    lli_free(dd);
}

static bool
is_role(int role)
{
    return role == LLM_ROLE_PROMPT || role == LLM_ROLE_DECODER || role == LLM_ROLE_MIX;
}

static llm_status
check_role(int role)
{
    if (is_role(role))
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "api",
                    "role is %d, expected 1 (Prompt), 2 (Decoder) or 3 (Mix)", role);
}

static llm_status
check_options(const llm_option *options, size_t num_options)
{
    if (options == NULL && num_options > 0)
        return lli_fail(LLM_PARAM_INVALID, "api", "options is NULL, num_options is %zu",
                        num_options);
    return LLM_SUCCESS;
}

static llm_status
initialize_locked(llm_datadist *dd, const llm_option *options, size_t num_options)
{
    if (atomic_load(&dd->initialized))
        return LLM_SUCCESS;
    LLI_TRY(check_role(atomic_load(&dd->role)));
    LLI_TRY(check_options(options, num_options));
    LLI_TRY(lli_engine_open(dd, options, num_options));
    atomic_store(&dd->initialized, true);
    lli_log(LLM_LOG_INFO, "api", "cluster %llu is initialized as %s with %zu device(s)",
            (unsigned long long)dd->cluster_id, lli_role_name(atomic_load(&dd->role)),
            dd->options.num_devices);
    return LLM_SUCCESS;
}

// In a forked child, of an instance of the parent's.  Its lock may be held by a thread that isn't here.
static bool
is_of_parent(const llm_datadist *dd)
{
    // In a pid namespace of its own a child may have the number of its parent.
    return atomic_load(&dd->initialized) &&
           (dd->pid != getpid() || dd->num_forks != lli_fork_count());
}

llm_status
llm_initialize(llm_datadist *dd, const llm_option *options, size_t num_options)
{
    if (dd == NULL)
        return lli_fail(LLM_FAILED, "api", "llm_initialize: the instance is NULL");
    if (is_of_parent(dd))
        return lli_check_initialized(dd, "llm_initialize");
    lli_log_speak_for(dd->cluster_id);
    lli_lock(&dd->life_lock);
    llm_status status = initialize_locked(dd, options, num_options);
    lli_unlock(&dd->life_lock);
    return status;
}

void
llm_finalize(llm_datadist *dd)
{
    if (dd == NULL)
        return;
    if (is_of_parent(dd)) {
        lli_engine_forget(dd);
        return;
    }
    lli_lock(&dd->life_lock);
    if (atomic_load(&dd->initialized)) {
        atomic_store(&dd->initialized, false);
        lli_engine_close(dd);
        lli_log(LLM_LOG_INFO, "api", "cluster %llu is finalized",
                (unsigned long long)dd->cluster_id);
    }
    lli_unlock(&dd->life_lock);
}

// With a backend an instance listens where it said at first (§13.4).
static llm_status
check_backend_address(llm_datadist *dd, const struct lli_endpoint *place)
{
    char given[LLI_ADDRESS_TEXT_BYTES];
    char expected[LLI_ADDRESS_TEXT_BYTES];
    const struct lli_endpoint *first = &dd->options.listen[0];
    // As it was given, or as it came out.
    if (lli_endpoint_equal(place, first) ||
        (dd->listeners.num_devices > 0 &&
         lli_endpoint_equal(place, &dd->listeners.of_device[0]->place)))
        return LLM_SUCCESS;
    return lli_fail(LLM_FEATURE_NOT_ENABLED, "api",
                    LLM_OPTION_LISTEN_IP_INFO " is %s, with " LLM_OPTION_TRANSFER_BACKEND
                                              " expected that of the initialization, %s",
                    lli_endpoint_format(place, given), lli_endpoint_format(first, expected));
}

static llm_status
check_set_role_version_2(llm_datadist *dd, const struct lli_endpoint *place)
{
    size_t num_links = lli_links_count(&dd->node);
    if (num_links > 0)
        return lli_fail(LLM_EXIST_LINK, "api", "%zu link(s) exist: unlink first", num_links);
    if (place != NULL && dd->options.has_backend)
        return check_backend_address(dd, place);
    return LLM_SUCCESS;
}

// Checks 4 to 7 of §5.5.
static llm_status
check_set_role(llm_datadist *dd, llm_role role, const struct lli_endpoint *place)
{
    int current = atomic_load(&dd->role);
    size_t num_links = lli_links_count(&dd->node);
    if (atomic_load(&dd->version_2))
        return check_set_role_version_2(dd, place);
    if (!dd->options.enable_set_role)
        return lli_fail(LLM_FEATURE_NOT_ENABLED, "api",
                        "llm_set_role needs " LLM_OPTION_ENABLE_SET_ROLE
                        " = \"1\" at initialization");
    if (dd->options.num_devices > 1)
        return lli_fail(LLM_FEATURE_NOT_ENABLED, "api",
                        "llm_set_role works with one device, this instance has %zu",
                        dd->options.num_devices);
    if (role == LLM_ROLE_PROMPT && place == NULL)
        return lli_fail(LLM_PARAM_INVALID, "api",
                        "to become Prompt, llm_set_role needs " LLM_OPTION_LISTEN_IP_INFO);
    if (current != LLM_ROLE_MIX && num_links > 0)
        return lli_fail(LLM_EXIST_LINK, "api",
                        "a %s with %zu link(s) can't change its role: unlink first",
                        lli_role_name(current), num_links);
    return LLM_SUCCESS;
}

llm_status
llm_set_role(llm_datadist *dd, llm_role role, const llm_option *options, size_t num_options)
{
    bool has_address = false;
    struct lli_endpoint place;
    LLI_TRY(lli_check_initialized(dd, "llm_set_role"));
    LLI_TRY(check_role((int)role));
    LLI_TRY(check_options(options, num_options));
    LLI_TRY(lli_options_parse_set_role(options, num_options, &has_address, &place));
    LLI_TRY(check_set_role(dd, role, has_address ? &place : NULL));
    // In version 2 the option alone decides whether the instance listens (§13.4).
    bool listens = atomic_load(&dd->version_2) ? has_address : role == LLM_ROLE_PROMPT;
    bool stays = listens && dd->options.has_backend && dd->listeners.num_devices > 0;
    if (!stays)
        LLI_TRY(lli_engine_relisten(dd, listens ? &place : NULL));
    lli_log(LLM_LOG_INFO, "api", "cluster %llu changes from %s to %s",
            (unsigned long long)dd->cluster_id, lli_role_name(atomic_load(&dd->role)),
            lli_role_name((int)role));
    atomic_store(&dd->role, (int)role);
    lli_free(dd->options.listen_later); // a newer word about listening has been spoken
    dd->options.listen_later = NULL;
    return LLM_SUCCESS;
}
