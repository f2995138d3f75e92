// Option strings -> a checked struct (§4).
#ifndef LLI_OPTIONS_H
#define LLI_OPTIONS_H

#include "base/address.h"
#include "base/base.h"

enum lli_transport_kind {
    LLI_TRANSPORT_LOCAL = 0,
    LLI_TRANSPORT_SHM = 1,
    LLI_TRANSPORT_TCP = 2,
    LLI_NUM_TRANSPORTS = 3
};

enum { LLI_LIVENESS_MS_MIN = 50, LLI_LIVENESS_MS_MAX = 600000, LLI_DEAD_MS_MAX = 3600000 };

enum lli_relink { LLI_RELINK_NEVER, LLI_RELINK_ALWAYS, LLI_RELINK_IN_VERSION_2 };

// "local", "shm", "tcp".
const char *lli_transport_name(enum lli_transport_kind kind);

// One size class of the device memory pool (§4.6).
struct lli_pool_tier {
    uint64_t total_bytes;      // taken from the pool at a time
    uint64_t block_bytes;      // allocation granule, a power of two
    uint64_t buffer_bytes_max; // largest allocation that the tier serves
};

struct lli_options {
    int32_t *device_ids; // num_devices
    size_t num_devices;
    struct lli_endpoint *listen; // num_devices for a Prompt, else none
    size_t num_listen;
    char *listen_later; // of another role in version 1: unread, until it becomes version 2
    uint32_t sync_wait_ms;
    bool enable_set_role;
    bool version_2;          // the program asks for the second generation (§13)
    bool has_local_comm_res; // given and not empty
    bool has_backend;        // llm.TransferBackend is given
    uint64_t pool_bytes;     // 0: not given
    struct lli_pool_tier *tiers;
    size_t num_tiers;
    struct json_t *pool_json; // between the two halves of reading llm.BufPoolCfg
    enum lli_transport_kind transports[LLI_NUM_TRANSPORTS]; // in order of preference
    size_t num_transports;
    uint32_t liveness_ms;
    uint32_t dead_ms; // no less than the liveness time
    uint32_t tcp_connections;
    uint32_t copy_threads;
    bool checksum;          // CRC32C of every block and message
    enum lli_relink relink; // when a transfer makes a broken link anew
};

// Checks 3, 4, 6, 7 and 8 of §5.3, in that order, then the options of our own.  LLM_PARAM_INVALID
// with one log line that names option, value and expectation; *ret_options is then empty.
llm_status lli_options_parse(const llm_option *options, size_t num_options, llm_role role,
                             struct lli_options *ret_options);

// Check 10: the tiers of llm.BufPoolCfg, looked at once devices are open.
llm_status lli_options_parse_tiers(struct lli_options *options);

// Harmless on an empty struct.
void lli_options_fini(struct lli_options *options);

// The address of llm_set_role (§5.5, checks 3 and 6): *ret_given tells whether the option was there.
llm_status lli_options_parse_set_role(const llm_option *options, size_t num_options,
                                      bool *ret_given, struct lli_endpoint *ret_place);

// The value of llm.ListenIpInfo with one address.
llm_status lli_options_parse_listen(const char *value, struct lli_endpoint *ret_place);

// A row of the table of options, for `llm-datadist info` and for people.
struct lli_option_row {
    const char *key;
    const char *value_default; // as text; "" = none
    const char *help;          // grammar and meaning in one line
};

const struct lli_option_row *lli_option_table(size_t *ret_num_rows);

#endif
