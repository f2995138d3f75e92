// The calls of the library that the simulation makes, in each process' own copy of it.
#ifndef SIM_API_H
#define SIM_API_H

#include <llm_datadist/llm_datadist_c.h>

#define SIM_API_MAP(X)                                                                             \
    X(llm_create)                                                                                  \
    X(llm_destroy)                                                                                 \
    X(llm_initialize)                                                                              \
    X(llm_finalize)                                                                                \
    X(llm_allocate_cache)                                                                          \
    X(llm_deallocate_cache)                                                                        \
    X(llm_register_kv_cache)                                                                       \
    X(llm_unregister_kv_cache)                                                                     \
    X(llm_link_clusters)                                                                           \
    X(llm_unlink_clusters)                                                                         \
    X(llm_pull_kv_cache)                                                                           \
    X(llm_pull_kv_blocks)                                                                          \
    X(llm_push_kv_cache)                                                                           \
    X(llm_push_kv_blocks)                                                                          \
    X(llm_start_pull_kv_cache)                                                                     \
    X(llm_start_pull_kv_blocks)                                                                    \
    X(llm_start_push_kv_cache)                                                                     \
    X(llm_start_push_kv_blocks)                                                                    \
    X(llm_transfer_poll)                                                                           \
    X(llm_transfer_wait)                                                                           \
    X(llm_transfer_cancel)                                                                         \
    X(llm_transfer_release)                                                                        \
    X(llm_poll_notification)                                                                       \
    X(llm_get_link_info)                                                                           \
    X(llm_list_links)                                                                              \
    X(llm_lease_open)                                                                              \
    X(llm_lease_renew)                                                                             \
    X(llm_lease_wait)                                                                              \
    X(llm_lease_close)                                                                             \
    X(llm_get_cache_info)                                                                          \
    X(llm_get_listen_port)                                                                         \
    X(llm_last_error)                                                                              \
    X(llm_status_name)                                                                             \
    X(llm_set_log_sink)                                                                            \
    X(llm_set_log_level)

struct sim_api {
#define SIM_API_FIELD(name) __typeof__(name) *name;
    SIM_API_MAP(SIM_API_FIELD)
#undef SIM_API_FIELD
};

#endif
