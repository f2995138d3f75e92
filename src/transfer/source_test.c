// The directory of a peer that has died: nothing in it counts any more.
#include "transfer/source.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "transport/view.h"
#include "unit/unit.h"

enum { CACHE = 7, GENERATION = 10, SLOTS = 4, STRIDE = 16 };

static struct lli_segment_layout *segment;
static uint8_t pool[1 << 12];

static struct lli_request
request_of(int64_t id, uint64_t slot)
{
    return (struct lli_request){
        .kind = LLI_REQUEST_SLOT,
        .cache_id = id,
        .num_tensors = 1,
        .stride = STRIDE,
        .slot = slot,
        .bytes = STRIDE,
    };
}

static llm_status
open_at(int pidfd, struct lli_request request)
{
    struct lli_memory_file pools[] = {{pool, sizeof(pool), -1}};
    struct lli_view view = {.segment = segment,
                            .num_devices = 1,
                            .pools = pools,
                            .pidfd = pidfd,
                            .life_line = -1,
                            .can_read = true};
    struct lli_link link = {.view = &view};
    struct lli_source_cache source;
    char why[LLI_REASON_BYTES] = "";
    llm_status status = lli_source_open(&link, &request, &source, why, sizeof(why));
    if (status == LLM_SUCCESS)
        (void)lli_source_close(&source, NULL, why, sizeof(why));
    else
        assert_int_not_equal(strlen(why), 0);
    return status;
}

static int
setup(void **state)
{
    (void)state;
    segment = mmap(NULL, sizeof(*segment), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (segment == MAP_FAILED)
        return -1;
    struct lli_entry *entry = &segment->entries[CACHE % LLI_NUM_ENTRIES];
    entry->generation = GENERATION;
    entry->cache_id = CACHE;
    entry->placement_and_tensors = UINT64_C(1) << 32 | 1;
    entry->num_slots = SLOTS;
    entry->stride = STRIDE;
    entry->tensor_bytes = SLOTS * STRIDE;
    return 0;
}

static void
test_a_living_peers_directory_says_what_is_wrong(void **state)
{
    (void)state;
    assert_int_equal(open_at(-1, request_of(CACHE, 0)), LLM_SUCCESS);
    assert_int_equal(open_at(-1, request_of(CACHE, SLOTS)), LLM_KV_CACHE_NOT_EXIST);
    assert_int_equal(open_at(-1, request_of(CACHE + 1, 0)), LLM_KV_CACHE_NOT_EXIST);
}

static void
test_of_a_dead_peer_nothing_is_said_but_that_it_died(void **state)
{
    (void)state;
    pid_t child = fork();
    if (child == 0)
        _exit(0);
    int pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    if (pidfd < 0)
        skip();
    assert_int_equal(waitpid(child, NULL, 0), child);
    assert_int_equal(open_at(pidfd, request_of(CACHE, SLOTS)), LLM_FAILED);
    assert_int_equal(open_at(pidfd, request_of(CACHE + 1, 0)), LLM_FAILED);
    struct lli_request too_long = request_of(CACHE, 0);
    too_long.bytes = STRIDE + 1;
    assert_int_equal(open_at(-1, too_long), LLM_PARAM_INVALID);
    assert_int_equal(open_at(pidfd, too_long), LLM_FAILED);
    close(pidfd);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_living_peers_directory_says_what_is_wrong),
        cmocka_unit_test(test_of_a_dead_peer_nothing_is_said_but_that_it_died),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
