// A bad network between two processes: every connection of a tcp link is cut, cut short, held up or
// changed in a bit, at every byte of its stream in either direction.  All calls end in time with a
// status that says so or with the right bytes, nothing lands afterwards, nothing is left behind, and
// over a good network the two link again.
//
//     proxy_test cut|flip|flip-checked [EVERY [FIRST]]
//
// EVERY: so many bytes further on each time; the ordinary run leaves most out.  Changed bits are
// noticed where there is a checksum.
#include <dirent.h>
#include <inttypes.h>

#include "fault/proxy.h"
#include "registered/kit.h"

enum { OWNER = 11, USER = 21, SOURCE = 0, TARGET = 1, TENSORS = 2, SLOTS = 4, STRIDE = 3000 };
enum { CALL_MS = SCALED(150, 1000), LIVENESS_MS = SCALED(200, 1000) };
enum { BOUND_MS = SCALED(4000, 30000), LINKS_MAX = 64 };

static unsigned every = 1;
static unsigned first = 0;
static bool checksum;

struct bed {
    struct other owner;
    struct proxy proxy;
    struct end user;
    struct kv target;
    struct kv source;
    size_t num_descriptors;
    struct proxy_plan plan;
    unsigned num_struck;
    unsigned num_wrong; // bytes changed on the way, which nobody could notice
};

#define fail_plan(bed, format, ...)                                                                \
    fail_msg("fault %u on connection %u, direction %u, byte %" PRIu64 ": " format,                 \
             (bed)->plan.fault, (bed)->plan.conn, (bed)->plan.direction, (bed)->plan.offset,       \
             __VA_ARGS__)

static size_t
num_descriptors(void)
{
    size_t count = 0;
    DIR *folder = opendir("/proc/self/fd");
    assert_non_null(folder);
    while (readdir(folder) != NULL)
        count++;
    closedir(folder);
    return count;
}

static void
bed_open(struct bed *bed)
{
    struct end_setup setup = {
        .id = OWNER,
        .transports = "tcp",
        .listens = true,
        .checksum = checksum,
        .sync_ms = CALL_MS,
        .liveness_ms = LIVENESS_MS,
    };
    memset(bed, 0, sizeof(*bed));
    other_open(&bed->owner, &setup);
    other_cache(&bed->owner, SOURCE, true, TENSORS, SLOTS, STRIDE);
    other_cache(&bed->owner, TARGET, true, TENSORS, SLOTS, STRIDE);
    other_fill(&bed->owner, SOURCE, 5);
    proxy_start(&bed->proxy, bed->owner.port);
    setup.id = USER;
    setup.listens = false;
    end_open(&bed->user, &setup);
    kv_open(&bed->target, &bed->user, TENSORS, SLOTS, STRIDE);
    kv_open(&bed->source, &bed->user, TENSORS, SLOTS, STRIDE);
    kv_fill(&bed->source, 6);
    bed->num_descriptors = num_descriptors();
}

static void
bed_close(struct bed *bed)
{
    end_close(&bed->user);
    kv_free(&bed->target);
    kv_free(&bed->source);
    // It has neither crashed nor got stuck.
    assert_true(process_join(&bed->owner.process));
    assert_true(process_join(&bed->proxy.process));
}

static void
check_call(struct bed *bed, const char *what, uint64_t start, llm_status status)
{
    static const llm_status allowed[] = {LLM_SUCCESS, LLM_FAILED, LLM_TIMEOUT, LLM_NOT_YET_LINK,
                                         LLM_LINK_FAILED, LLM_LINK_BUSY, LLM_UNLINK_FAILED,
                                         LLM_NOTIFY_PROMPT_UNLINK_FAILED, LLM_WAIT_PROC_TIMEOUT,
                                         // What a changed request asks for may not exist there.
                                         LLM_KV_CACHE_NOT_EXIST, LLM_PARAM_INVALID};
    uint64_t took = now_ms() - start;
    size_t i = 0;
    while (i < LENGTH(allowed) - (bed->plan.fault == PROXY_FLIP ? 0 : 2) && allowed[i] != status)
        i++;
    if (took > BOUND_MS)
        fail_plan(bed, "%s took %" PRIu64 " ms", what, took);
    // A bit may be changed in a status as well.
    if ((i == LENGTH(allowed) || allowed[i] != status) && bed->plan.fault != PROXY_FLIP)
        fail_plan(bed, "%s answers %s", what, llm_status_name(status));
}

static llm_status
link_owner(struct bed *bed, int32_t timeout_ms)
{
    llm_ip_info local = {.ip = "127.0.0.1"};
    llm_ip_info remote = {.ip = "127.0.0.1", .port = bed->proxy.port};
    llm_cluster_info info = {
        .struct_size = sizeof(info),
        .remote_cluster_id = OWNER,
        .local_ip_infos = &local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = &remote,
        .num_remote_ip_infos = 1,
    };
    uint64_t start = now_ms();
    llm_status status = llm_link_clusters(bed->user.dd, &info, 1, NULL, NULL, timeout_ms);
    check_call(bed, "linking", start, status);
    return status;
}

static llm_status
transfer(struct bed *bed, const struct kv *kv, bool push, uint32_t timeout_ms)
{
    struct job job = {
        .push = push,
        .peer = OWNER,
        .remote = push ? 2 : 1,
        .count = SLOTS,
        .shift = 1,
        .timeout_ms = timeout_ms,
    };
    uint64_t start = now_ms();
    llm_status status = job_run(&job, &bed->user, kv);
    check_call(bed, push ? "a push" : "a pull", start, status);
    return status;
}

// All links go, also those that a changed id has made.
static void
unlink_all(struct bed *bed)
{
    uint64_t ids[LINKS_MAX];
    size_t num_links;
    uint64_t start = now_ms();
    assert_ok(llm_list_links(bed->user.dd, ids, LINKS_MAX, &num_links));
    assert_true(num_links <= LINKS_MAX);
    for (size_t i = 0; i < num_links; i++)
        assert_ok(end_unlink(&bed->user, ids[i], bed->proxy.port, true));
    check_call(bed, "unlinking", start, LLM_SUCCESS);
}

// Bytes that are wrong although the call says success: only without a checksum, and only if a bit was
// changed.
static void
check_bytes(struct bed *bed, const char *what, bool right)
{
    if (right)
        return;
    if (checksum || bed->plan.fault != PROXY_FLIP)
        fail_plan(bed, "%s has claimed wrong bytes", what);
    bed->num_wrong++;
}

static void
check_good_network(struct bed *bed)
{
    struct proxy_plan none = {.fault = PROXY_NONE};
    struct kv again;
    llm_status status = LLM_FAILED;
    proxy_plan(&bed->proxy, &none);
    kv_open(&again, &bed->user, TENSORS, SLOTS, STRIDE);
    for (unsigned attempt = 0; attempt < 3 && status != LLM_SUCCESS; attempt++) {
        unlink_all(bed);
        status = link_owner(bed, PATIENCE_MS);
        if (status == LLM_SUCCESS)
            status = transfer(bed, &again, false, PATIENCE_MS);
    }
    if (status != LLM_SUCCESS)
        fail_plan(bed, "afterwards a pull answers %s", llm_status_name(status));
    if (!kv_holds(&again, 5, SLOTS, 1))
        fail_plan(bed, "%s", "afterwards a pull has claimed wrong bytes");
    unlink_all(bed);
    assert_ok(llm_unregister_kv_cache(bed->user.dd, again.id));
    kv_free(&again);
}

static void
await_rest(struct bed *bed)
{
    uint64_t deadline = now_ms() + PATIENCE_MS;
    while (num_descriptors() != bed->num_descriptors) {
        if (now_ms() > deadline)
            fail_plan(bed, "%zu descriptors are left, expected %zu", num_descriptors(),
                      bed->num_descriptors);
        sched_yield();
    }
}

// One link with a pull and a push over the bad network.  False if the fault found no such byte.
static bool
visit(struct bed *bed, uint64_t passed[PROXY_CONNS_MAX][PROXY_DIRECTIONS])
{
    bool good = bed->plan.fault == PROXY_NONE;
    int32_t timeout_ms = good ? PATIENCE_MS : CALL_MS;
    llm_ip_info local = {.ip = "127.0.0.1"};
    kv_fill(&bed->target, 0);
    other_fill(&bed->owner, TARGET, 0);
    proxy_plan(&bed->proxy, &bed->plan);
    llm_status linked = link_owner(bed, timeout_ms);
    llm_status pulled = transfer(bed, &bed->target, false, (uint32_t)timeout_ms);
    if (pulled == LLM_SUCCESS)
        check_bytes(bed, "a pull", kv_holds(&bed->target, 5, SLOTS, 1));
    assert_true(kv_is_intact_around(&bed->target));
    kv_fill(&bed->target, 9);
    llm_status pushed = transfer(bed, &bed->source, true, (uint32_t)timeout_ms);
    if (pushed == LLM_SUCCESS)
        check_bytes(bed, "a push", other_holds(&bed->owner, TARGET, 6, SLOTS, 1));
    llm_cluster_info info = {
        .struct_size = sizeof(info),
        .remote_cluster_id = OWNER,
        .local_ip_infos = &local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = &local,
        .num_remote_ip_infos = 1,
    };
    uint64_t start = now_ms();
    llm_status unlinked = llm_unlink_clusters(bed->user.dd, &info, 1, NULL, NULL, timeout_ms, 0);
    check_call(bed, "unlinking", start, unlinked);
    bool struck = proxy_report(&bed->proxy, passed);
    unlink_all(bed);
    if (good) {
        assert_ok(linked);
        assert_ok(pulled);
        assert_ok(pushed);
        assert_ok(unlinked);
    }
    if (struck)
        check_good_network(bed);
    if (!kv_holds(&bed->target, 9, SLOTS, 0))
        fail_plan(bed, "%s", "bytes have landed after the call had returned");
    await_rest(bed);
    return struck;
}

static void
sweep(enum proxy_fault fault, unsigned apart)
{
    struct bed bed;
    uint64_t all[PROXY_CONNS_MAX][PROXY_DIRECTIONS];
    uint64_t passed[PROXY_CONNS_MAX][PROXY_DIRECTIONS];
    unsigned num_visits = 0;
    bed_open(&bed);
    (void)visit(&bed, all);
    for (unsigned conn = 0; conn < PROXY_CONNS_MAX; conn++) {
        for (unsigned direction = 0; direction < PROXY_DIRECTIONS; direction++) {
            // Far more of the bytes of the caches than of others: fewer of those.
            uint64_t offset = first;
            while (offset < all[conn][direction]) {
                bed.plan = (struct proxy_plan){
                    .fault = fault,
                    .conn = conn,
                    .direction = direction,
                    .offset = offset,
                    .delay_ms = 3 * LIVENESS_MS,
                };
                num_visits++;
                bed.num_struck += visit(&bed, passed);
                offset += conn > 0 && offset > 1000 ? 40 * apart : apart;
            }
        }
    }
    print_message("%u visits, %u of them spoilt; %u times bytes were changed unnoticed\n",
                  num_visits, bed.num_struck, bed.num_wrong);
    assert_true(bed.num_struck > num_visits / 2);
    bed_close(&bed);
}

// ---- a transfer that was cut goes on ----

enum { LONG = 2, LONG_SLOTS = 16, LONG_STRIDE = 64 << 10, PLACES = 12 };

static llm_status
go_on(struct bed *bed, const struct kv *kv, bool push, llm_progress *progress)
{
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    llm_cache local = kv_cache(kv);
    // The third cache of either end.
    llm_cache_index remote = {.struct_size = sizeof(remote), .cluster_id = OWNER, .cache_id = 3};
    uint64_t from[LONG_SLOTS];
    uint64_t to[LONG_SLOTS];
    for (unsigned i = 0; i < LONG_SLOTS; i++) {
        from[i] = i;
        to[i] = (i + 1) % LONG_SLOTS;
    }
    param.timeout_ms = PATIENCE_MS;
    param.progress = progress;
    uint64_t start = now_ms();
    llm_status status = push ? llm_push_kv_blocks(bed->user.dd, &local, &remote, from, LONG_SLOTS,
                                                  to, LONG_SLOTS, &param)
                             : llm_pull_kv_blocks(bed->user.dd, &remote, &local, from, LONG_SLOTS,
                                                  to, LONG_SLOTS, &param);
    check_call(bed, "a transfer that can go on", start, status);
    return status;
}

// What is said to have arrived is there.
static void
check_arrived(struct bed *bed, const struct kv *kv, const llm_progress *progress)
{
    for (uint64_t i = 0; i < (uint64_t)TENSORS * LONG_SLOTS; i++) {
        uint32_t tensor = (uint32_t)(i / LONG_SLOTS);
        uint64_t block = i % LONG_SLOTS;
        if (progress->bytes_arrived >= (i + 1) * LONG_STRIDE &&
            !kv_slot_holds(kv, tensor, (block + 1) % LONG_SLOTS, 5, tensor, block))
            fail_plan(bed, "block %" PRIu64 " of %" PRIu64 " arrived bytes is wrong", i,
                      progress->bytes_arrived);
    }
}

// Cut once, then over a good network to its end.  True if a part of it had arrived before.
static bool
visit_and_go_on(struct bed *bed, struct kv *kv, bool push)
{
    struct proxy_plan none = {.fault = PROXY_NONE};
    llm_progress progress = {.struct_size = sizeof(progress)};
    bool had_part = false;
    llm_status status = LLM_FAILED;
    proxy_plan(&bed->proxy, &bed->plan);
    kv_fill(kv, push ? 5 : 0);
    other_fill(&bed->owner, LONG, push ? 0 : 5);
    for (unsigned attempt = 0; attempt < 5 && status != LLM_SUCCESS; attempt++) {
        unlink_all(bed);
        if (link_owner(bed, PATIENCE_MS) == LLM_SUCCESS)
            status = go_on(bed, kv, push, &progress);
        if (!push)
            check_arrived(bed, kv, &progress);
        had_part |= status == LLM_SUCCESS && progress.bytes_moved < progress.total_bytes;
        proxy_plan(&bed->proxy, &none);
    }
    if (status != LLM_SUCCESS)
        fail_plan(bed, "continued, it answers %s", llm_status_name(status));
    assert_int_equal(progress.bytes_arrived, progress.total_bytes);
    if (push ? !other_holds(&bed->owner, LONG, 5, LONG_SLOTS, 1) : !kv_holds(kv, 5, LONG_SLOTS, 1))
        fail_plan(bed, "continued, a %s has claimed wrong bytes", push ? "push" : "pull");
    return had_part;
}

static void
cut_and_continued(bool push)
{
    struct bed bed;
    struct kv kv;
    unsigned num_parts = 0;
    bed_open(&bed);
    kv_open(&kv, &bed.user, TENSORS, LONG_SLOTS, LONG_STRIDE);
    other_cache(&bed.owner, LONG, true, TENSORS, LONG_SLOTS, LONG_STRIDE);
    for (unsigned conn = 1; conn < PROXY_CONNS_MAX; conn++) {
        for (unsigned place = 0; place < PLACES; place++) {
            // About a MiB on each of the connections.
            bed.plan = (struct proxy_plan){
                .fault = place % 2 == 0 ? PROXY_CUT : PROXY_TRUNCATE,
                .conn = conn,
                .direction = push ? 0 : 1,
                .offset = 1000 + place * (90000 + every),
            };
            num_parts += visit_and_go_on(&bed, &kv, push);
        }
    }
    print_message("%u times a part had arrived\n", num_parts);
    assert_true(num_parts > 0);
    unlink_all(&bed);
    kv_free(&kv);
    bed_close(&bed);
}

static void
test_a_pull_goes_on(void **state)
{
    (void)state;
    cut_and_continued(false);
}

static void
test_a_push_goes_on(void **state)
{
    (void)state;
    cut_and_continued(true);
}

static void
test_cut(void **state)
{
    (void)state;
    sweep(PROXY_CUT, every);
}

static void
test_truncated(void **state)
{
    (void)state;
    sweep(PROXY_TRUNCATE, every);
}

static void
test_held_up(void **state)
{
    (void)state;
    // Each costs its time.
    sweep(PROXY_DELAY, 8 * every);
}

static void
test_a_bit_changed(void **state)
{
    (void)state;
    sweep(PROXY_FLIP, every);
}

int
main(int argc, char **argv)
{
    static const struct CMUnitTest cut[] = {
        KIT_TEST(test_cut),
        KIT_TEST(test_truncated),
        KIT_TEST(test_held_up),
        KIT_TEST(test_a_pull_goes_on),
        KIT_TEST(test_a_push_goes_on),
    };
    static const struct CMUnitTest flip[] = {KIT_TEST(test_a_bit_changed)};
    const char *role;
    struct talk talk;
    if (process_role(argc, argv, &role, &talk))
        return strcmp(role, "proxy") == 0 ? proxy_serve(&talk) : kit_serve(&talk);
    if (argc < 2) {
        fprintf(stderr, "usage: proxy_test cut|flip|flip-checked [EVERY [FIRST]]\n");
        return 2;
    }
    if (argc > 2)
        every = (unsigned)strtoul(argv[2], NULL, 10);
    if (argc > 3)
        first = (unsigned)strtoul(argv[3], NULL, 10);
    transport = "tcp";
    checksum = strcmp(argv[1], "flip-checked") == 0;
    if (strcmp(argv[1], "cut") == 0)
        return cmocka_run_group_tests(cut, NULL, NULL);
    return cmocka_run_group_tests(flip, NULL, NULL);
}
