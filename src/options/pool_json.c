// llm.BufPoolCfg, a JSON text (§4.6).  Its size is read with the other options, its tiers when the
// devices are open, because the original library does so and callers see the order.
#include "options/pool_json.h"

#include <inttypes.h>
#include <stdio.h>

#include <jansson.h>

#include "base/log.h"
#include "base/mem.h"

#define KEY LLM_OPTION_BUF_POOL_CFG

enum { MAX_BLOCK_BYTES = 2 << 20, SYSTEM_PAGE_BYTES = 2 << 20, SHOWN_JSON_BYTES = 96 };

// Short enough for a log line: scalars in full, the rest by its type.
static const char *
describe(const json_t *value, char *text, size_t size)
{
    if (value == NULL)
        snprintf(text, size, "missing");
    else if (json_is_integer(value))
        snprintf(text, size, "%" JSON_INTEGER_FORMAT, json_integer_value(value));
    else if (json_is_real(value))
        snprintf(text, size, "%g, not an integer", json_real_value(value));
    else if (json_is_string(value))
        snprintf(text, size, "the text \"%.40s\"", json_string_value(value));
    else if (json_is_object(value))
        snprintf(text, size, "an object");
    else if (json_is_array(value))
        snprintf(text, size, json_array_size(value) == 0 ? "an empty array" : "an array");
    else
        snprintf(text, size, json_is_null(value) ? "null" : "a truth value");
    return text;
}

static llm_status
load_text(const char *value, json_t **ret_root)
{
    json_error_t error = {0};
    // A lone number or text is JSON too: it gets the answer about the missing object, not about JSON.
    *ret_root = json_loads(value, JSON_DECODE_ANY | JSON_ALLOW_NUL, &error);
    if (*ret_root != NULL)
        return LLM_SUCCESS;
    // Jansson reports most failed allocations by leaving the text empty.
    if (error.text[0] == '\0' || json_error_code(&error) == json_error_out_of_memory)
        return lli_fail(LLM_FAILED, "options", "no memory to read " KEY);
    return lli_reject_option(KEY, value, "expected a JSON object, but %s (line %d, column %d)",
                             error.text, error.line, error.column);
}

// Steps 3 to 5.
static llm_status
check_top_level(const char *value, const json_t *root, uint64_t *ret_pool_bytes, bool *ret_tiers)
{
    char shown[SHOWN_JSON_BYTES];
    const json_t *size = json_object_get(root, "buf_pool_size");
    if (size != NULL && (!json_is_integer(size) || json_integer_value(size) <= 0)) {
        return lli_reject_option(KEY, value,
                                 "buf_pool_size is %s, expected a number of bytes, 1 or more",
                                 describe(size, shown, sizeof(shown)));
    }
    *ret_pool_bytes = size != NULL ? (uint64_t)json_integer_value(size) : 0;
    *ret_tiers = json_object_get(root, "buf_cfg") != NULL;
    if (!*ret_tiers && !(size != NULL && json_object_size(root) == 1)) {
        return lli_reject_option(
            KEY, value,
            "expected a JSON object with buf_cfg, or with buf_pool_size and nothing else");
    }
    return LLM_SUCCESS;
}

llm_status
lli_pool_json_load(const char *value, struct lli_options *options)
{
    json_t *root;
    bool has_tiers = false;
    if (value[0] == '\0')
        return lli_reject_option(KEY, value, "expected a JSON object");
    LLI_TRY(load_text(value, &root));
    llm_status status = check_top_level(value, root, &options->pool_bytes, &has_tiers);
    if (status == LLM_SUCCESS && has_tiers)
        options->pool_json = root;
    else
        json_decref(root);
    return status;
}

static llm_status
read_tier_value(const json_t *tier, size_t index, const char *name, uint64_t *ret_value)
{
    char shown[SHOWN_JSON_BYTES];
    const json_t *value = json_object_get(tier, name);
    if (!json_is_integer(value) || json_integer_value(value) <= 0 ||
        json_integer_value(value) > UINT32_MAX) {
        return lli_fail(LLM_PARAM_INVALID, "options",
                        KEY ": buf_cfg[%zu].%s is %s, expected an integer 1..4294967295", index,
                        name, describe(value, shown, sizeof(shown)));
    }
    *ret_value = (uint64_t)json_integer_value(value);
    return LLM_SUCCESS;
}

static const char *
find_tier_fault(const struct lli_pool_tier *tier, uint64_t previous_max)
{
    if (tier->total_bytes <= tier->buffer_bytes_max)
        return "total_size > max_buf_size";
    if (tier->buffer_bytes_max < tier->block_bytes)
        return "max_buf_size >= blk_size";
    if ((tier->block_bytes & (tier->block_bytes - 1)) != 0)
        return "a blk_size that is a power of two";
    if (tier->block_bytes > MAX_BLOCK_BYTES)
        return "blk_size <= 2097152";
    if (tier->total_bytes % tier->block_bytes != 0)
        return "a total_size that is a multiple of blk_size";
    if (tier->buffer_bytes_max <= previous_max)
        return "a max_buf_size larger than that of the tier before";
    return NULL;
}

static llm_status
read_tier(const json_t *json, size_t index, uint64_t previous_max, struct lli_pool_tier *ret_tier)
{
    LLI_TRY(read_tier_value(json, index, "total_size", &ret_tier->total_bytes));
    LLI_TRY(read_tier_value(json, index, "blk_size", &ret_tier->block_bytes));
    LLI_TRY(read_tier_value(json, index, "max_buf_size", &ret_tier->buffer_bytes_max));
    const char *expected = find_tier_fault(ret_tier, previous_max);
    if (expected == NULL)
        return LLM_SUCCESS;
    return lli_fail(LLM_PARAM_INVALID, "options",
                    KEY ": buf_cfg[%zu] has total_size %" PRIu64 ", blk_size %" PRIu64
                        ", max_buf_size %" PRIu64 ", expected %s",
                    index, ret_tier->total_bytes, ret_tier->block_bytes, ret_tier->buffer_bytes_max,
                    expected);
}

static llm_status
read_tiers(const json_t *array, struct lli_pool_tier *tiers, size_t num_tiers)
{
    uint64_t previous_max = 0;
    for (size_t i = 0; i < num_tiers; i++) {
        LLI_TRY(read_tier(json_array_get(array, i), i, previous_max, &tiers[i]));
        previous_max = tiers[i].buffer_bytes_max;
    }
    return LLM_SUCCESS;
}

// Documented as a rule, checked by nobody (§4.6).  One line however many tiers there are.
static void
warn_of_odd_total(const struct lli_pool_tier *tiers, size_t num_tiers)
{
    for (size_t i = 0; i < num_tiers; i++) {
        if (tiers[i].total_bytes % SYSTEM_PAGE_BYTES != 0) {
            lli_log(LLM_LOG_WARN, "options",
                    KEY ": buf_cfg[%zu].total_size is %" PRIu64
                        ", which the original library wants to be a multiple of 2097152",
                    i, tiers[i].total_bytes);
            return;
        }
    }
}

llm_status
lli_options_parse_tiers(struct lli_options *options)
{
    char shown[SHOWN_JSON_BYTES];
    if (options->pool_json == NULL)
        return LLM_SUCCESS;
    const json_t *array = json_object_get(options->pool_json, "buf_cfg");
    size_t num_tiers = json_array_size(array); // 0 if it is no array
    if (num_tiers == 0) {
        return lli_fail(LLM_PARAM_INVALID, "options",
                        KEY ": buf_cfg is %s, expected a non-empty array",
                        describe(array, shown, sizeof(shown)));
    }
    struct lli_pool_tier *tiers = lli_calloc(num_tiers, sizeof(*tiers));
    if (tiers == NULL)
        return lli_fail(LLM_FAILED, "options", "no memory for %zu tiers of " KEY, num_tiers);
    llm_status status = read_tiers(array, tiers, num_tiers);
    if (status != LLM_SUCCESS) {
        lli_free(tiers);
        return status;
    }
    warn_of_odd_total(tiers, num_tiers);
    options->tiers = tiers;
    options->num_tiers = num_tiers;
    json_decref(options->pool_json);
    options->pool_json = NULL;
    return LLM_SUCCESS;
}
