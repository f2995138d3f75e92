// Option strings -> struct lli_options.  OPTION_MAP has one row per option; to add an option, add a
// row and its parser.
#include "options/options.h"

#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <strings.h>

#include <jansson.h>

#include "base/log.h"
#include "base/mem.h"
#include "options/pool_json.h"

enum { MAX_DEVICES = 64, MAX_PORT = 65535, SHOWN_ITEM_BYTES = 60 };

// X(key, default, parser, help), in the order of the checks (§5.3, then our own).  An option that is
// not given is parsed from its default, so the defaults shown are those that hold.  The device type
// comes last: "can't be opened" belongs behind everything that is merely wrong.
#define OPTION_MAP(X)                                                                              \
    X(LLM_OPTION_DEVICE_ID, "", parse_device_ids,                                                  \
      "id[;id...]: device ids 0..2147483647, at most 64; required")                                \
    X(LLM_OPTION_LISTEN_IP_INFO, "", parse_listen,                                                 \
      "host:port[;host:port...]: IPv4, [IPv6] or name per device, port 0 = any; needed by a "      \
      "Prompt")                                                                                    \
    X(LLM_OPTION_BUF_POOL_CFG, "", parse_pool,                                                     \
      "JSON {\"buf_pool_size\":n,\"buf_cfg\":[{\"total_size\":n,\"blk_size\":n,"                   \
      "\"max_buf_size\":n},...]}: bytes and tiers of the device memory pool")                      \
    X(LLM_OPTION_ENABLE_SET_ROLE, "0", parse_enable_set_role, "0|1: whether the role may change")  \
    X(LLM_OPTION_SYNC_CACHE_WAIT_TIME, "1000", parse_sync_wait,                                    \
      "1..2147483647: milliseconds for a pull, a query, and each layer of a push")                 \
    X(LLM_OPTION_LOCAL_COMM_RES, "", parse_local_comm_res,                                         \
      "any text: not needed here, but asks for version 2 of the interface")                        \
    X(LLM_OPTION_TRANSFER_BACKEND, "", parse_transfer_backend,                                     \
      "hixl: asks for version 2 of the interface; needs llm.ListenIpInfo")                         \
    X(LLM_OPTION_GLOBAL_RESOURCE_CONFIG, "", parse_global_resource_config,                         \
      "JSON: only with llm.TransferBackend, not needed here")                                      \
    X(LLM_OPTION_TRANSPORTS, "auto", parse_transports,                                             \
      "auto|name[,name...]: of local, shm and tcp, best first; auto = local,shm,tcp")              \
    X(LLM_OPTION_LIVENESS_TIME, "500", parse_liveness,                                             \
      "50..600000: milliseconds of silence after which a link is suspect")                         \
    X(LLM_OPTION_DEAD_TIME, "10000", parse_dead_time,                                              \
      "50..3600000: milliseconds of silence after which a link breaks, at least the liveness "     \
      "time")                                                                                      \
    X(LLM_OPTION_RELINK, "auto", parse_relink,                                                     \
      "auto|0|1: whether a transfer makes a broken link anew; auto = 1 in version 2, else 0")      \
    X(LLM_OPTION_TCP_CONNECTIONS, "2", parse_tcp_connections,                                      \
      "1..8: connections that carry the data of a tcp link")                                       \
    X(LLM_OPTION_COPY_THREADS, "2", parse_copy_threads,                                            \
      "1..16: threads that copy a large pull on one host, the caller's included")                  \
    X(LLM_OPTION_CHECKSUM, "none", parse_checksum,                                                 \
      "none|crc32c: what every block and message is checked with")                                 \
    X(LLM_OPTION_LOG_LEVEL, "warn", parse_log_level,                                               \
      "off|error|warn|info|debug: for the whole process; LLM_DATADIST_LOG_LEVEL wins")             \
    X(LLM_OPTION_DEVICE_TYPE, "auto", parse_device_type,                                           \
      "auto|host: the memory that device ids speak of")

// Options of the original library, of its later version and of its Python layer that have nothing
// to act on here.  Accepted, and named in the log.
static const char *const unneeded_keys[] = {
    LLM_OPTION_LOCAL_COMM_RES,
    "llm.ClusterInfo",
    "llm.EnableCacheManager",
    "llm.EnableRemoteCacheAccessible",
    LLM_OPTION_GLOBAL_RESOURCE_CONFIG,
    "llm.HostMemPoolConfig",
    "llm.LinkRetryCount",
    "llm.LinkTotalTime",
    "llm.ListenIp",
    "llm.ListenPort",
    "llm.MemPoolConfig",
    "llm.MemoryUtilization",
    "llm.OutputMaxSize",
    "llm.RdmaServiceLevel",
    "llm.RdmaTrafficClass",
    "llm.Role",
    "llm.deployResPath",
};

static const char *const transport_names[LLI_NUM_TRANSPORTS] = {
    [LLI_TRANSPORT_LOCAL] = "local",
    [LLI_TRANSPORT_SHM] = "shm",
    [LLI_TRANSPORT_TCP] = "tcp",
};

// What the parsers see beside the value, and where their results go.
struct reading {
    llm_role role;
    llm_log_level log_level;
    struct lli_options *out;
};

// `value` is the given text, else the row's default, or NULL if it has none.
typedef llm_status (*parse_fn)(struct reading *reading, const char *value);

llm_status
lli_reject_option(const char *key, const char *value, const char *format, ...)
{
    char message[512];
    va_list args;
    va_start(args, format);
    vsnprintf(message, sizeof(message), format, args);
    va_end(args);
    const char *dots = strlen(value) > LLI_SHOWN_BYTES ? "..." : "";
    return lli_fail(LLM_PARAM_INVALID, "options", "%s is \"%.*s%s\": %s", key, LLI_SHOWN_BYTES,
                    value, dots, message);
}

static llm_status
reject_missing(const char *key, const char *expected)
{
    return lli_fail(LLM_PARAM_INVALID, "options", "%s is missing: expected %s", key, expected);
}

// ---- Grammars -----------------------------------------------------------------------------------

static size_t
count_items(const char *list, char separator)
{
    size_t count = 1; // splitting keeps empty items, the one behind a last separator too
    for (const char *c = list; *c != '\0'; c++)
        count += *c == separator;
    return count;
}

// How an item appears in a log line.
static int
shown_bytes(const char *begin, const char *end)
{
    return (int)lli_min((uint64_t)(end - begin), SHOWN_ITEM_BYTES);
}

// Blank in the C locale, whatever locale the process has.
static bool
is_blank(char c)
{
    return c == ' ' || (c >= '\t' && c <= '\r');
}

static bool
is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// The number grammar (§4.1), that of a C++ stream: blanks, a sign and zeros in front are fine,
// anything behind the digits is not.  `max` < 2^32.
static bool
parse_number(const char *begin, const char *end, int64_t min, int64_t max, int64_t *ret_number)
{
    const char *c = begin;
    int64_t magnitude = 0;
    while (c < end && is_blank(*c))
        c++;
    bool negative = c < end && *c == '-';
    if (c < end && (*c == '-' || *c == '+'))
        c++;
    if (c == end)
        return false;
    for (; c < end; c++) {
        if (!is_digit(*c))
            return false;
        if (magnitude <= UINT32_MAX) // else it is out of range already, and stays so
            magnitude = magnitude * 10 + (*c - '0');
    }
    *ret_number = negative ? -magnitude : magnitude;
    return *ret_number >= min && *ret_number <= max;
}

static bool
parse_whole_number(const char *text, int64_t min, int64_t max, uint32_t *ret_number)
{
    int64_t number;
    if (!parse_number(text, text + strlen(text), min, max, &number))
        return false;
    *ret_number = (uint32_t)number;
    return true;
}

static bool
parse_place(const char *begin, const char *end, struct lli_endpoint *ret_place)
{
    struct lli_endpoint place;
    const char *number;
    int64_t port;
    if (!lli_endpoint_split(begin, end, &place, &number) ||
        !parse_number(number, end, 0, MAX_PORT, &port))
        return false;
    place.port = (uint16_t)port;
    *ret_place = place;
    return true;
}

// `places` has room for as many as `value` has items: the caller has counted.
static llm_status
parse_places(const char *value, struct lli_endpoint *places)
{
    const char *item = value;
    for (size_t i = 0;; i++) {
        const char *end = strchrnul(item, ';');
        if (!parse_place(item, end, &places[i])) {
            return lli_reject_option(
                LLM_OPTION_LISTEN_IP_INFO, value,
                "expected HOST:PORT, the host an IPv4 address, an IPv6 address in brackets or a "
                "name, the port 0..65535, but found \"%.*s\"",
                shown_bytes(item, end), item);
        }
        if (*end == '\0')
            return LLM_SUCCESS;
        item = end + 1;
    }
}

// ---- One parser per option ----------------------------------------------------------------------

static llm_status
fill_device_ids(const char *value, int32_t *ids)
{
    const char *item = value;
    for (size_t i = 0;; i++) {
        int64_t id;
        const char *end = strchrnul(item, ';');
        if (!parse_number(item, end, 0, INT32_MAX, &id)) {
            return lli_reject_option(
                LLM_OPTION_DEVICE_ID, value,
                "expected numbers 0..2147483647, separated by ';', but found \"%.*s\"",
                shown_bytes(item, end), item);
        }
        ids[i] = (int32_t)id;
        if (*end == '\0')
            return LLM_SUCCESS;
        item = end + 1;
    }
}

// A device twice would be two pools in one memory, which the original leaves to chance.
static llm_status
check_device_ids(const char *value, const int32_t *ids, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        for (size_t j = 0; j < i; j++) {
            if (ids[i] == ids[j])
                return lli_reject_option(LLM_OPTION_DEVICE_ID, value,
                                         "expected each device once, but found %d twice", ids[i]);
        }
    }
    return LLM_SUCCESS;
}

static llm_status
parse_device_ids(struct reading *reading, const char *value)
{
    if (value == NULL)
        return reject_missing(LLM_OPTION_DEVICE_ID, "device ids, separated by ';'");
    size_t count = count_items(value, ';');
    if (count > MAX_DEVICES) {
        return lli_reject_option(LLM_OPTION_DEVICE_ID, value,
                                 "expected at most %d devices, but these are %zu", MAX_DEVICES,
                                 count);
    }
    if (reading->out->version_2 && count > 1)
        return lli_reject_option(LLM_OPTION_DEVICE_ID, value,
                                 "expected one device with version 2, but these are %zu", count);
    reading->out->device_ids = lli_calloc(count, sizeof(*reading->out->device_ids));
    if (reading->out->device_ids == NULL)
        return lli_fail(LLM_FAILED, "options", "no memory for " LLM_OPTION_DEVICE_ID);
    reading->out->num_devices = count;
    LLI_TRY(fill_device_ids(value, reading->out->device_ids));
    return check_device_ids(value, reading->out->device_ids, count);
}

static llm_status
parse_listen(struct reading *reading, const char *value)
{
    bool version_2 = reading->out->version_2;
    if (!version_2 && reading->role != LLM_ROLE_PROMPT && value != NULL) {
        // A wrong value is harmless there (§4.3).
        reading->out->listen_later = lli_strdup(value);
        if (reading->out->listen_later == NULL)
            return lli_fail(LLM_FAILED, "options", "no memory for " LLM_OPTION_LISTEN_IP_INFO);
        return LLM_SUCCESS;
    }
    if (!version_2 && reading->role != LLM_ROLE_PROMPT)
        return LLM_SUCCESS;
    if (version_2 && value == NULL)
        return LLM_SUCCESS; // a client (§13.3)
    if (value == NULL)
        return reject_missing(LLM_OPTION_LISTEN_IP_INFO, "HOST:PORT for each device of a Prompt");
    size_t count = count_items(value, ';');
    if (count != reading->out->num_devices) {
        return lli_reject_option(LLM_OPTION_LISTEN_IP_INFO, value,
                                 "expected one HOST:PORT per device, separated by ';': %zu, "
                                 "but these are %zu",
                                 reading->out->num_devices, count);
    }
    reading->out->listen = lli_calloc(count, sizeof(*reading->out->listen));
    if (reading->out->listen == NULL)
        return lli_fail(LLM_FAILED, "options", "no memory for " LLM_OPTION_LISTEN_IP_INFO);
    reading->out->num_listen = count;
    return parse_places(value, reading->out->listen);
}

static llm_status
parse_pool(struct reading *reading, const char *value)
{
    return value != NULL ? lli_pool_json_load(value, reading->out) : LLM_SUCCESS;
}

static llm_status
parse_enable_set_role(struct reading *reading, const char *value)
{
    reading->out->enable_set_role = strcmp(value, "1") == 0;
    if (reading->out->enable_set_role || strcmp(value, "0") == 0)
        return LLM_SUCCESS;
    return lli_reject_option(LLM_OPTION_ENABLE_SET_ROLE, value, "expected 0 or 1");
}

static llm_status
parse_sync_wait(struct reading *reading, const char *value)
{
    // Stricter than the other numbers: neither sign nor blanks (§4.4).
    if (is_digit(value[0]) && parse_whole_number(value, 1, INT32_MAX, &reading->out->sync_wait_ms))
        return LLM_SUCCESS;
    return lli_reject_option(LLM_OPTION_SYNC_CACHE_WAIT_TIME, value,
                             "expected milliseconds, 1..2147483647, digits only");
}

static llm_status
parse_local_comm_res(struct reading *reading, const char *value)
{
    reading->out->has_local_comm_res = value != NULL && value[0] != '\0';
    return LLM_SUCCESS;
}

static llm_status
parse_transfer_backend(struct reading *reading, const char *value)
{
    if (value == NULL)
        return LLM_SUCCESS;
    if (strcmp(value, "hixl") != 0)
        return lli_reject_option(LLM_OPTION_TRANSFER_BACKEND, value, "expected hixl");
    if (reading->out->num_listen == 0)
        return lli_reject_option(LLM_OPTION_TRANSFER_BACKEND, value,
                                 "expected " LLM_OPTION_LISTEN_IP_INFO " beside it");
    return LLM_SUCCESS;
}

static llm_status
parse_global_resource_config(struct reading *reading, const char *value)
{
    if (value == NULL || !reading->out->has_backend)
        return LLM_SUCCESS;
    json_t *json = json_loads(value, 0, NULL);
    if (json == NULL)
        return lli_reject_option(LLM_OPTION_GLOBAL_RESOURCE_CONFIG, value, "expected JSON");
    json_decref(json);
    return LLM_SUCCESS;
}

// Appends the transport of that name; false if there is none of that name, or it is in the list already.
static bool
append_transport(struct lli_options *options, const char *begin, const char *end)
{
    size_t bytes = (size_t)(end - begin);
    for (size_t kind = 0; kind < LLI_NUM_TRANSPORTS; kind++) {
        if (strlen(transport_names[kind]) != bytes ||
            memcmp(transport_names[kind], begin, bytes) != 0)
            continue;
        for (size_t i = 0; i < options->num_transports; i++) {
            if (options->transports[i] == (enum lli_transport_kind)kind)
                return false;
        }
        options->transports[options->num_transports++] = (enum lli_transport_kind)kind;
        return true;
    }
    return false;
}

static llm_status
parse_transports(struct reading *reading, const char *value)
{
    const char *item = strcmp(value, "auto") == 0 ? "local,shm,tcp" : value;
    for (;;) {
        const char *end = strchrnul(item, ',');
        if (!append_transport(reading->out, item, end)) {
            return lli_reject_option(LLM_OPTION_TRANSPORTS, value,
                                     "expected auto, or local, shm and tcp, each at most once, "
                                     "separated by ',', but found \"%.*s\"",
                                     shown_bytes(item, end), item);
        }
        if (*end == '\0')
            return LLM_SUCCESS;
        item = end + 1;
    }
}

static llm_status
parse_liveness(struct reading *reading, const char *value)
{
    if (parse_whole_number(value, LLI_LIVENESS_MS_MIN, LLI_LIVENESS_MS_MAX,
                           &reading->out->liveness_ms))
        return LLM_SUCCESS;
    return lli_reject_option(LLM_OPTION_LIVENESS_TIME, value, "expected milliseconds, 50..600000");
}

static llm_status
parse_dead_time(struct reading *reading, const char *value)
{
    struct lli_options *out = reading->out;
    if (!parse_whole_number(value, LLI_LIVENESS_MS_MIN, LLI_DEAD_MS_MAX, &out->dead_ms))
        return lli_reject_option(LLM_OPTION_DEAD_TIME, value, "expected milliseconds, 50..3600000");
    out->dead_ms = (uint32_t)lli_max(out->dead_ms, out->liveness_ms);
    return LLM_SUCCESS;
}

static llm_status
parse_relink(struct reading *reading, const char *value)
{
    static const char *const words[] = {
        [LLI_RELINK_NEVER] = "0", [LLI_RELINK_ALWAYS] = "1", [LLI_RELINK_IN_VERSION_2] = "auto"};
    for (size_t i = 0; i < LLI_COUNT(words); i++) {
        reading->out->relink = (enum lli_relink)i;
        if (strcmp(value, words[i]) == 0)
            return LLM_SUCCESS;
    }
    return lli_reject_option(LLM_OPTION_RELINK, value, "expected auto, 0 or 1");
}

static llm_status
parse_tcp_connections(struct reading *reading, const char *value)
{
    if (parse_whole_number(value, 1, 8, &reading->out->tcp_connections))
        return LLM_SUCCESS;
    return lli_reject_option(LLM_OPTION_TCP_CONNECTIONS, value, "expected a number 1..8");
}

static llm_status
parse_copy_threads(struct reading *reading, const char *value)
{
    if (parse_whole_number(value, 1, 16, &reading->out->copy_threads))
        return LLM_SUCCESS;
    return lli_reject_option(LLM_OPTION_COPY_THREADS, value, "expected a number 1..16");
}

static llm_status
parse_checksum(struct reading *reading, const char *value)
{
    reading->out->checksum = strcmp(value, "crc32c") == 0;
    if (reading->out->checksum || strcmp(value, "none") == 0)
        return LLM_SUCCESS;
    return lli_reject_option(LLM_OPTION_CHECKSUM, value, "expected none or crc32c");
}

static llm_status
parse_log_level(struct reading *reading, const char *value)
{
    if (lli_log_level_parse(value, &reading->log_level))
        return LLM_SUCCESS;
    return lli_reject_option(LLM_OPTION_LOG_LEVEL, value,
                             "expected off, error, warn, info or debug");
}

static llm_status
parse_device_type(struct reading *reading, const char *value)
{
    (void)reading;
    if (strcmp(value, "auto") == 0 || strcmp(value, "host") == 0)
        return LLM_SUCCESS;
    // Known devices that can't be opened (check 9 of §5.3), rather than wrong words.
    if (strcmp(value, "cuda") == 0 || strcmp(value, "ascend") == 0) {
        return lli_fail(LLM_FAILED, "options",
                        LLM_OPTION_DEVICE_TYPE
                        " is \"%s\": this build opens host memory only, expected auto or host",
                        value);
    }
    return lli_reject_option(LLM_OPTION_DEVICE_TYPE, value, "expected auto or host");
}

// ---- The table ----------------------------------------------------------------------------------

#define SHOWN_ROW(key, value_default, parser, help) {key, value_default, help},
#define PARSER(key, value_default, parser, help) parser,
static const struct lli_option_row rows[] = {OPTION_MAP(SHOWN_ROW)};
static const parse_fn parsers[] = {OPTION_MAP(PARSER)};
#undef SHOWN_ROW
#undef PARSER

const struct lli_option_row *
lli_option_table(size_t *ret_num_rows)
{
    *ret_num_rows = LLI_COUNT(rows);
    return rows;
}

const char *
lli_transport_name(enum lli_transport_kind kind)
{
    return (size_t)kind < LLI_COUNT(transport_names) ? transport_names[kind] : "none";
}

// ---- Keys that nobody reads ---------------------------------------------------------------------

enum { MAX_KEY_BYTES = 40, NEAR_EDITS = 2 };

// Insertions, deletions and substitutions from a to b, letters' case aside.  Both are short.
static size_t
count_edits(const char *a, const char *b)
{
    size_t costs[MAX_KEY_BYTES + 1];
    size_t b_bytes = strlen(b);
    for (size_t j = 0; j <= b_bytes; j++)
        costs[j] = j;
    for (size_t i = 0; a[i] != '\0'; i++) {
        size_t diagonal = costs[0];
        costs[0] = i + 1;
        for (size_t j = 1; j <= b_bytes; j++) {
            bool same = tolower((unsigned char)a[i]) == tolower((unsigned char)b[j - 1]);
            size_t replaced = diagonal + (same ? 0 : 1);
            diagonal = costs[j];
            costs[j] = lli_min(replaced, lli_min(costs[j], costs[j - 1]) + 1);
        }
    }
    return costs[b_bytes];
}

// Keys of other name spaces are for others.
static bool
is_ours(const char *key)
{
    return strncasecmp(key, "llm.", 4) == 0;
}

// The option that somebody who wrote `key` may have meant, or NULL.
static const char *
find_near_key(const char *key)
{
    const char *nearest = NULL;
    size_t least = NEAR_EDITS + 1;
    if (!is_ours(key) || strlen(key) > MAX_KEY_BYTES)
        return NULL;
    for (size_t i = 0; i < LLI_COUNT(rows); i++) {
        size_t edits = count_edits(key, rows[i].key);
        if (edits < least) {
            least = edits;
            nearest = rows[i].key;
        }
    }
    return nearest;
}

static bool
is_unneeded(const char *key)
{
    for (size_t i = 0; i < LLI_COUNT(unneeded_keys); i++) {
        if (strcmp(key, unneeded_keys[i]) == 0)
            return true;
    }
    return false;
}

static bool
is_known(const char *key)
{
    for (size_t i = 0; i < LLI_COUNT(rows); i++) {
        if (strcmp(key, rows[i].key) == 0)
            return true;
    }
    return false;
}

static void
note_key(const char *key)
{
    if (is_unneeded(key)) {
        lli_log(LLM_LOG_DEBUG, "options", "%s is accepted, but not needed here", key);
        return;
    }
    if (is_known(key))
        return;
    const char *near_key = find_near_key(key);
    if (near_key != NULL) {
        lli_log(LLM_LOG_WARN, "options", "%.*s is unknown and ignored: did you mean %s?",
                SHOWN_ITEM_BYTES, key, near_key);
        return;
    }
    lli_log(is_ours(key) ? LLM_LOG_WARN : LLM_LOG_DEBUG, "options", "%.*s is unknown and ignored",
            SHOWN_ITEM_BYTES, key);
}

static void
note_keys(const llm_option *options, size_t num_options)
{
    if (!lli_log_enabled(LLM_LOG_WARN))
        return;
    for (size_t i = 0; i < num_options; i++)
        note_key(options[i].key);
}

// ---- The way in ---------------------------------------------------------------------------------

static llm_status
check_pairs(const llm_option *options, size_t num_options)
{
    if (options == NULL && num_options > 0) {
        return lli_fail(LLM_PARAM_INVALID, "options",
                        "options is NULL: expected an array of %zu pairs", num_options);
    }
    for (size_t i = 0; i < num_options; i++) {
        if (options[i].key == NULL) {
            return lli_fail(LLM_PARAM_INVALID, "options",
                            "options[%zu].key is NULL: expected the name of an option", i);
        }
        if (options[i].value == NULL) {
            return lli_fail(LLM_PARAM_INVALID, "options", "%.*s is NULL: expected a text",
                            SHOWN_ITEM_BYTES, options[i].key);
        }
    }
    return LLM_SUCCESS;
}

// The last one wins, as with assignments to a map.
static const char *
find_value(const llm_option *options, size_t num_options, const char *key)
{
    for (size_t i = num_options; i > 0; i--) {
        if (strcmp(options[i - 1].key, key) == 0)
            return options[i - 1].value;
    }
    return NULL;
}

static llm_status
parse_rows(struct reading *reading, const llm_option *options, size_t num_options)
{
    for (size_t i = 0; i < LLI_COUNT(rows); i++) {
        const char *value = find_value(options, num_options, rows[i].key);
        if (value == NULL && rows[i].value_default[0] != '\0')
            value = rows[i].value_default;
        LLI_TRY(parsers[i](reading, value));
    }
    return LLM_SUCCESS;
}

llm_status
lli_options_parse(const llm_option *options, size_t num_options, llm_role role,
                  struct lli_options *ret_options)
{
    struct reading reading = {.role = role, .out = ret_options};
    *ret_options = (struct lli_options){0};
    LLI_TRY(check_pairs(options, num_options));
    ret_options->has_backend =
        find_value(options, num_options, LLM_OPTION_TRANSFER_BACKEND) != NULL;
    ret_options->version_2 = ret_options->has_backend ||
                             find_value(options, num_options, LLM_OPTION_LOCAL_COMM_RES) != NULL;
    llm_status status = parse_rows(&reading, options, num_options);
    if (status != LLM_SUCCESS)
        lli_options_fini(ret_options);
    else if (find_value(options, num_options, LLM_OPTION_LOG_LEVEL) != NULL)
        llm_set_log_level(reading.log_level); // the default must not undo the application's choice
    // After a failure too: a misspelt key is a likely reason why another one is missing.
    note_keys(options, num_options);
    return status;
}

llm_status
lli_options_parse_listen(const char *value, struct lli_endpoint *ret_place)
{
    size_t count = count_items(value, ';');
    if (count != 1)
        return lli_reject_option(LLM_OPTION_LISTEN_IP_INFO, value,
                                 "expected exactly one HOST:PORT, but these are %zu", count);
    return parse_places(value, ret_place);
}

llm_status
lli_options_parse_set_role(const llm_option *options, size_t num_options, bool *ret_given,
                           struct lli_endpoint *ret_place)
{
    *ret_given = false;
    *ret_place = (struct lli_endpoint){0};
    LLI_TRY(check_pairs(options, num_options));
    note_keys(options, num_options);
    const char *value = find_value(options, num_options, LLM_OPTION_LISTEN_IP_INFO);
    if (value == NULL)
        return LLM_SUCCESS;
    LLI_TRY(lli_options_parse_listen(value, ret_place));
    *ret_given = true;
    return LLM_SUCCESS;
}

void
lli_options_fini(struct lli_options *options)
{
    lli_free(options->device_ids);
    lli_free(options->listen);
    lli_free(options->listen_later);
    lli_free(options->tiers);
    json_decref(options->pool_json);
    *options = (struct lli_options){0};
}
