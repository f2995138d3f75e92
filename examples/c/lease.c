/* Blocks that must not be used again before they have been pulled: a request key, a lease, and a pull
 * that goes on where it stopped.
 *
 * Both clusters live in this process, to keep it short; over a network nothing changes but the
 * addresses.  What a serving system sends by its own means (the request's number, the lease's
 * generation) is passed in variables here. */
#include <llm_datadist/llm_datadist.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PROMPT = 1, DECODER = 2, BLOCKS = 8, BLOCK_BYTES = 4096, TENSORS = 2, REQUEST = 4711 };

struct side {
    llm_datadist *dd;
    llm_cache cache;
    uintptr_t kv[TENSORS];
};

static void
must(llm_status status, const char *what)
{
    printf("%-52s %s\n", what, llm_status_name(status));
    if (status != LLM_SUCCESS)
        exit(1);
}

static void
expect(llm_status status, llm_status expected, const char *what)
{
    printf("%-52s %s\n", what, llm_status_name(status));
    if (status != expected)
        exit(1);
}

static void
open_side(struct side *side, uint64_t id, llm_role role)
{
    static const int64_t shape[] = {BLOCKS, BLOCK_BYTES};
    static const llm_cache_desc desc = {
        sizeof(desc), LLM_PLACEMENT_DEVICE, TENSORS, LLM_DT_INT8, shape, 2};
    const llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"},
                                  {LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"},
                                  {LLM_OPTION_CHECKSUM, "crc32c"}};
    must(llm_create(id, role, &side->dd), "create");
    must(llm_initialize(side->dd, options, 3), "initialize");
    side->cache = (llm_cache){sizeof(llm_cache), 0, NULL, side->kv, TENSORS};
    must(llm_allocate_cache(side->dd, &desc, &side->cache), "allocate");
    for (int i = 0; i < TENSORS; i++)
        memset((void *)side->kv[i], 0, (size_t)BLOCKS * BLOCK_BYTES);
}

static void
link_sides(const struct side *decoder, const struct side *prompt)
{
    llm_ip_info here = {"0.0.0.0", 0};
    llm_ip_info there = {"127.0.0.1", 0};
    must(llm_get_listen_port(prompt->dd, 0, &there.port), "the prompt's port");
    llm_cluster_info cluster = {sizeof(cluster), PROMPT, 0, &here, 1, &there, 1};
    must(llm_link_clusters(decoder->dd, &cluster, 1, NULL, NULL, 5000), "link");
}

/* ---- the prompt ---- */

/* Blocks 2 and 3 are the request's: whoever knows the generation may pull them for a while. */
static uint64_t
lend_blocks(const struct side *prompt)
{
    uint64_t generation;
    llm_lease_desc desc = {
        .struct_size = sizeof(desc),
        .cache_id = prompt->cache.cache_id,
        .first_block = 2,
        .num_blocks = 2,
        .duration_ms = 60000,
        .num_releases = 1,
    };
    for (int i = 0; i < TENSORS; i++)
        memset((void *)(prompt->kv[i] + 2 * BLOCK_BYTES), 'a' + i, 2 * BLOCK_BYTES);
    must(llm_lease_open(prompt->dd, &desc, &generation), "prompt: lend blocks 2 and 3");
    return generation;
}

/* Slot 0 gets a name: peers need no ids. */
static void
name_slot(const struct side *prompt)
{
    llm_cache_key key = {sizeof(key), LLM_KEY_REQUEST, REQUEST, 0};
    for (int i = 0; i < TENSORS; i++)
        memset((void *)prompt->kv[i], 'x' + i, BLOCK_BYTES);
    must(llm_bind_cache_keys(prompt->dd, prompt->cache.cache_id, &key, 1),
         "prompt: slot 0 is request 4711");
}

/* ---- the decoder ---- */

static llm_status
pull_blocks(const struct side *decoder, int64_t cache_id, uint64_t generation,
            llm_progress *progress)
{
    const uint64_t from[] = {2, 3};
    const uint64_t to[] = {6, 5};
    llm_cache_index index = {
        .struct_size = sizeof(index),
        .cluster_id = PROMPT,
        .cache_id = cache_id,
        .generation = generation,
    };
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    param.release_lease = 1;
    param.progress = progress;
    return llm_pull_kv_blocks(decoder->dd, &index, &decoder->cache, from, 2, to, 2, &param);
}

static llm_status
pull_request(const struct side *decoder)
{
    llm_cache_key key = {sizeof(key), LLM_KEY_REQUEST, REQUEST, 0};
    llm_cache_index index = {.struct_size = sizeof(index), .cluster_id = PROMPT, .key = &key};
    return llm_pull_kv_cache(decoder->dd, &index, &decoder->cache, 1, -1, NULL);
}

static int
holds(const struct side *side, int tensor, size_t block, char byte)
{
    const char *bytes = (const char *)(side->kv[tensor] + block * BLOCK_BYTES);
    return bytes[0] == byte && memcmp(bytes, bytes + 1, BLOCK_BYTES - 1) == 0;
}

int
main(void)
{
    struct side prompt;
    struct side decoder;
    llm_progress progress = {.struct_size = sizeof(progress)};
    open_side(&prompt, PROMPT, LLM_ROLE_PROMPT);
    open_side(&decoder, DECODER, LLM_ROLE_DECODER);
    link_sides(&decoder, &prompt);

    uint64_t generation = lend_blocks(&prompt);
    expect(llm_lease_wait(prompt.dd, generation, 0), LLM_LEASE_ACTIVE, "prompt: are they free?");
    /* Were this to fail, the same call with the same `progress` would move the rest. */
    must(pull_blocks(&decoder, prompt.cache.cache_id, generation, &progress),
         "decoder: pull them, and give them back");
    printf("%-52s %llu of %llu bytes\n", "decoder: has arrived",
           (unsigned long long)progress.bytes_arrived, (unsigned long long)progress.total_bytes);
    expect(llm_lease_wait(prompt.dd, generation, 5000), LLM_SUCCESS, "prompt: are they free?");
    must(llm_lease_close(prompt.dd, generation), "prompt: close the lease");
    /* From here on the prompt may put something else there: who comes late is told. */
    expect(pull_blocks(&decoder, prompt.cache.cache_id, generation, NULL), LLM_CACHE_STALE,
           "decoder: pull them once more");

    name_slot(&prompt);
    must(pull_request(&decoder), "decoder: pull request 4711 into slot 1");
    expect(pull_request(&decoder), LLM_KV_CACHE_NOT_EXIST, "decoder: and again");

    int right = 1;
    for (int i = 0; i < TENSORS; i++)
        right = right && holds(&decoder, i, 6, (char)('a' + i)) &&
                holds(&decoder, i, 5, (char)('a' + i)) && holds(&decoder, i, 1, (char)('x' + i));
    puts(right ? "all bytes are right" : "wrong bytes");
    llm_destroy(decoder.dd);
    llm_destroy(prompt.dd);
    return right ? 0 : 1;
}
