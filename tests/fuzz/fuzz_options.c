// Any option strings give a status and an intact struct.
//
// Input: a letter for the role (P, D or M), then lines of key=value.
#include "base/log.h"
#include "base/log_limit.h"
#include "fuzz/fuzz.h"
#include "options/options.h"

enum { MAX_PAIRS = 32 };

static size_t num_errors;

static void
count_errors(void *arg, llm_log_level level, const char *line)
{
    (void)arg;
    (void)line;
    num_errors += level == LLM_LOG_ERROR;
}

// A block of its own, so that a sanitizer sees reads behind the end.
static char *
copy_text(const uint8_t *begin, size_t size)
{
    char *text = malloc(size + 1);
    MUST(text != NULL);
    memcpy(text, begin, size);
    text[size] = '\0';
    return text;
}

static size_t
split_pairs(const uint8_t *data, size_t size, llm_option *pairs)
{
    size_t num_pairs = 0;
    while (size > 0 && num_pairs < MAX_PAIRS) {
        const uint8_t *end = memchr(data, '\n', size);
        size_t line = end != NULL ? (size_t)(end - data) : size;
        const uint8_t *equals = memchr(data, '=', line);
        size_t key = equals != NULL ? (size_t)(equals - data) : line;
        pairs[num_pairs].key = copy_text(data, key);
        pairs[num_pairs].value =
            equals != NULL ? copy_text(equals + 1, line - key - 1) : copy_text(data, 0);
        num_pairs++;
        size -= end != NULL ? line + 1 : line;
        data += end != NULL ? line + 1 : line;
    }
    return num_pairs;
}

static void
check_options(const struct lli_options *o, llm_role role)
{
    MUST(o->num_devices >= 1 && o->num_devices <= 64);
    for (size_t i = 0; i < o->num_devices; i++)
        MUST(o->device_ids[i] >= 0);
    if (o->version_2)
        MUST(o->num_devices == 1 && o->num_listen <= 1);
    else
        MUST(o->num_listen == (role == LLM_ROLE_PROMPT ? o->num_devices : 0));
    for (size_t i = 0; i < o->num_listen; i++) {
        struct lli_endpoint same;
        MUST(lli_endpoint_parse(o->listen[i].host, o->listen[i].port, &same) &&
             lli_endpoint_equal(&same, &o->listen[i]));
    }
    MUST(o->num_transports >= 1 && o->num_transports <= LLI_NUM_TRANSPORTS);
    MUST(o->sync_wait_ms >= 1 && o->sync_wait_ms <= INT32_MAX);
    MUST(o->liveness_ms >= 50 && o->liveness_ms <= 600000);
    MUST(o->tcp_connections >= 1 && o->tcp_connections <= 8);
}

static void
check_tiers(const struct lli_options *o)
{
    uint64_t previous_max = 0;
    MUST(o->pool_json == NULL);
    for (size_t i = 0; i < o->num_tiers; i++) {
        const struct lli_pool_tier *tier = &o->tiers[i];
        MUST(tier->block_bytes > 0 && tier->total_bytes % tier->block_bytes == 0);
        MUST((tier->block_bytes & (tier->block_bytes - 1)) == 0);
        MUST(tier->block_bytes <= tier->buffer_bytes_max);
        MUST(tier->buffer_bytes_max < tier->total_bytes && tier->total_bytes <= UINT32_MAX);
        MUST(tier->buffer_bytes_max > previous_max);
        previous_max = tier->buffer_bytes_max;
    }
}

static void
try_initialize(const llm_option *pairs, size_t num_pairs, llm_role role)
{
    struct lli_options o;
    num_errors = 0;
    lli_log_begin_anew();
    llm_set_log_level(LLM_LOG_DEBUG); // a run before may have changed it
    llm_status status = lli_options_parse(pairs, num_pairs, role, &o);
    if (status == LLM_SUCCESS) {
        llm_set_log_level(LLM_LOG_DEBUG);
        check_options(&o, role);
        status = lli_options_parse_tiers(&o);
        if (status == LLM_SUCCESS)
            check_tiers(&o);
    } else {
        MUST(o.device_ids == NULL && o.listen == NULL && o.pool_json == NULL);
    }
    MUST(num_errors == (status == LLM_SUCCESS ? 0 : 1));
    lli_options_fini(&o);
}

static void
try_set_role(const llm_option *pairs, size_t num_pairs)
{
    bool given;
    struct lli_endpoint place;
    num_errors = 0;
    lli_log_begin_anew();
    llm_status status = lli_options_parse_set_role(pairs, num_pairs, &given, &place);
    MUST(num_errors == (status == LLM_SUCCESS ? 0 : 1));
    MUST(status == LLM_SUCCESS || !given);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    llm_option pairs[MAX_PAIRS];
    llm_role role = LLM_ROLE_PROMPT;
    unsetenv("LLM_DATADIST_LOG_LEVEL"); // it would win over the level set here
    llm_set_log_sink(count_errors, NULL);
    if (size > 0) {
        role = data[0] == 'D' ? LLM_ROLE_DECODER : data[0] == 'M' ? LLM_ROLE_MIX : LLM_ROLE_PROMPT;
        data++;
        size--;
    }
    if (size > 0 && data[0] == '\n') {
        data++;
        size--;
    }
    size_t num_pairs = split_pairs(data, size, pairs);
    try_initialize(pairs, num_pairs, role);
    try_set_role(pairs, num_pairs);
    for (size_t i = 0; i < num_pairs; i++) {
        free((char *)(uintptr_t)pairs[i].key);
        free((char *)(uintptr_t)pairs[i].value);
    }
    llm_set_log_sink(NULL, NULL);
    return 0;
}
