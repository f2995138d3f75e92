// Every call of the operating system fails once, in every way that it may, in every call of the
// library: the first, the second, ... until none is left to fail.  Each time the call ends in time, with
// a status that says so and an explanation, or does without; it writes no output when it fails, leaves
// no descriptor and no mapping behind; and the same call works when it is repeated.
//
// A signal is no failure.  Before that, therefore, every call that a signal may interrupt is
// interrupted, all of them once each and then one at a time, and everything must succeed, at once.
//
// Both ends of a link live in this process and share the count, with their threads; then one of them
// in another process, each in turn.  The liveness time is the longest there is: nothing may depend
// on a silence to end.
#include <dirent.h>
#include <inttypes.h>

#include "base/log.h"
#include "engine/engine.h"
#include "fault/syscalls.h"
#include "registered/kit.h"

enum { OWNER = 11, USER = 21, TENSORS = 2, SLOTS = 4, SWEEP_MAX = 1000 };
enum { STRAYS_MAX = 5 };
enum { LIVENESS_MS = 600000, BOUND_MS = SCALED(3000, 20000), TURNS = 2 };

// ---- what must be as before ----

struct belongings {
    size_t num_descriptors;
    size_t num_mappings; // of memory files
};

static struct belongings
belongings(void)
{
    struct belongings found = {0};
    char line[512];
    DIR *folder = opendir("/proc/self/fd");
    FILE *maps = fopen("/proc/self/maps", "re");
    assert_non_null(folder);
    assert_non_null(maps);
    while (readdir(folder) != NULL)
        found.num_descriptors++;
    while (fgets(line, sizeof(line), maps) != NULL)
        found.num_mappings += strstr(line, "/memfd:") != NULL;
    fclose(maps);
    closedir(folder);
    return found;
}

// ---- the sweep ----

enum phase {
    INTERRUPT_ALL, // every second call
    INTERRUPT_ONE, // the n-th
    FAIL_ONE,
};

struct sweep {
    const char *what;
    enum phase phase;
    uint64_t n; // 0: every second
    unsigned variant;
    bool struck;
    unsigned num_struck;
    unsigned num_strays;
    struct end *ends[2];
    struct other *other; // the owner is another process, or NULL
    bool there;          // the failures are there
    struct belongings before;
    uint64_t start;
    // The last failure.
    char call[32];
    int error;
};

#define fail_sweep(sweep, format, ...)                                                             \
    fail_msg("%s, system call %" PRIu64 ", %s: %s: " format, (sweep)->what, (sweep)->n,            \
             (sweep)->call, strerror((sweep)->error), __VA_ARGS__)

// What is still going on comes to rest, as far as it does without waiting.
static void
settle(const struct sweep *sweep)
{
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < LENGTH(sweep->ends); i++) {
            if (sweep->ends[i] != NULL && sweep->ends[i]->dd->initialized)
                lli_loop_flush(&sweep->ends[i]->dd->loop);
        }
    }
}

static void
arm(struct sweep *sweep)
{
    struct syscalls_plan plan = {
        .deed = sweep->phase == FAIL_ONE ? SYSCALLS_FAIL : SYSCALLS_INTERRUPT,
        .n = sweep->n,
        .variant = sweep->variant,
    };
    settle(sweep);
    if (sweep->n > SWEEP_MAX)
        fail_sweep(sweep, "still failing after %d", SWEEP_MAX);
    lli_set_last_error("");
    sweep->start = now_ms();
    if (sweep->there)
        other_ask(sweep->other, "arm %d %" PRIu64 " %u", (int)plan.deed, plan.n, plan.variant);
    else
        syscalls_arm(&plan);
}

// False when no call was left to fail: the sweep is over.
static bool
disarm(struct sweep *sweep)
{
    unsigned num_errors = 0;
    char answer[LINE_BYTES];
    bool struck;
    if (sweep->there) {
        process_ask(&sweep->other->process, answer, "disarm");
        assert_int_equal(sscanf(answer, "%31s %d %u", sweep->call, &sweep->error, &num_errors), 3);
        struck = num_errors > 0;
    } else {
        settle(sweep);
        struck = syscalls_disarm();
        snprintf(sweep->call, sizeof(sweep->call), "%s",
                 syscalls_struck(&sweep->error, &num_errors));
    }
    uint64_t took = now_ms() - sweep->start;
    if (took > BOUND_MS)
        fail_sweep(sweep, "it took %" PRIu64 " ms", took);
    sweep->num_struck += struck;
    sweep->struck = struck;
    return struck || sweep->phase != FAIL_ONE;
}

// To the next error of this call, or to the next call, or to the next phase.
static void
move_on(struct sweep *sweep)
{
    int error;
    unsigned num_errors;
    if (sweep->phase == INTERRUPT_ALL || (sweep->phase == INTERRUPT_ONE && !sweep->struck)) {
        sweep->phase++;
        sweep->n = 1;
        return;
    }
    if (sweep->there)
        num_errors = 3;
    else
        (void)syscalls_struck(&error, &num_errors);
    if (++sweep->variant >= num_errors) {
        sweep->variant = 0;
        sweep->n++;
    }
}

static void
sweep_begin(struct sweep *sweep, const char *what)
{
    sweep->what = what;
    sweep->phase = INTERRUPT_ALL;
    sweep->n = 0;
    sweep->variant = 0;
    sweep->num_struck = sweep->num_strays = 0;
}

static void
sweep_end(const struct sweep *sweep)
{
    print_message("%s: %u failures\n", sweep->what, sweep->num_struck);
}

static void
check_failure(const struct sweep *sweep, llm_status status, const llm_status *allowed,
              size_t num_allowed)
{
    char why[512];
    bool found = false;
    if (sweep->phase != FAIL_ONE)
        fail_sweep(sweep, "it answers %s", llm_status_name(status));
    for (size_t i = 0; i < num_allowed; i++)
        found |= status == allowed[i];
    if (!found)
        fail_sweep(sweep, "it answers %s", llm_status_name(status));
    if (llm_last_error(why, sizeof(why)) == 0)
        fail_sweep(sweep, "it answers %s without an explanation", llm_status_name(status));
}
#define check_failed(sweep, status, ...)                                                           \
    check_failure((sweep), (status), (const llm_status[]){__VA_ARGS__},                            \
                  LENGTH(((const llm_status[]){__VA_ARGS__})))

static void
await_rest(const struct sweep *sweep)
{
    uint64_t deadline = now_ms() + PATIENCE_MS;
    for (;;) {
        struct belongings now = belongings();
        if (now.num_descriptors == sweep->before.num_descriptors &&
            now.num_mappings == sweep->before.num_mappings)
            return;
        if (now_ms() > deadline)
            fail_sweep(sweep, "%zu descriptors and %zu memory files are left, expected %zu and %zu",
                       now.num_descriptors, now.num_mappings, sweep->before.num_descriptors,
                       sweep->before.num_mappings);
        settle(sweep);
    }
}

// ---- life cycle ----

static void
sweep_initialize(const char *what, llm_role role, const char *devices, const char *address,
                 bool version_2)
{
    const llm_option options[] = {{LLM_OPTION_DEVICE_ID, devices},
                                  {LLM_OPTION_LIVENESS_TIME, "600000"},
                                  {LLM_OPTION_LISTEN_IP_INFO, address},
                                  {LLM_OPTION_LOCAL_COMM_RES, ""}};
    size_t num_options = version_2 ? 4 : 3;
    llm_datadist *dd;
    struct sweep sweep = {.before = belongings()};
    assert_ok(llm_create(1, role, &dd));
    sweep_begin(&sweep, what);
    for (bool struck = true; struck; move_on(&sweep)) {
        size_t num_links;
        arm(&sweep);
        llm_status status = llm_initialize(dd, options, num_options);
        struck = disarm(&sweep);
        if (status != LLM_SUCCESS) {
            assert_true(struck);
            check_failed(&sweep, status, LLM_FAILED);
            assert_status(llm_list_links(dd, NULL, 0, &num_links), LLM_FAILED);
            await_rest(&sweep);
            assert_ok(llm_initialize(dd, options, num_options));
        }
        assert_ok(llm_list_links(dd, NULL, 0, &num_links));
        llm_finalize(dd);
        await_rest(&sweep);
    }
    sweep_end(&sweep);
    assert_true(sweep.num_struck > 20);
    llm_destroy(dd);
}

static void
test_initialize(void **state)
{
    (void)state;
    sweep_initialize("initialize a prompt", LLM_ROLE_PROMPT, "0", "127.0.0.1:0", false);
    sweep_initialize("initialize a prompt with two devices", LLM_ROLE_PROMPT, "0;1",
                     "127.0.0.1:0;127.0.0.2:0", false);
    sweep_initialize("initialize a decoder", LLM_ROLE_DECODER, "0", "", false);
    sweep_initialize("initialize version 2", LLM_ROLE_DECODER, "0", "127.0.0.1:0", true);
}

static void
test_set_role(void **state)
{
    static const llm_option options[] = {{LLM_OPTION_DEVICE_ID, "0"},
                                         {LLM_OPTION_ENABLE_SET_ROLE, "1"}};
    static const llm_option address[] = {{LLM_OPTION_LISTEN_IP_INFO, "127.0.0.1:0"}};
    struct end end = {0};
    struct sweep sweep = {.ends = {&end}};
    uint16_t port = 0;
    (void)state;
    assert_ok(llm_create(1, LLM_ROLE_DECODER, &end.dd));
    assert_ok(llm_initialize(end.dd, options, LENGTH(options)));
    for (unsigned turn = 0; turn < TURNS; turn++) {
        // First it becomes a prompt, then it changes its listener.
        sweep.before = belongings();
        sweep_begin(&sweep, turn == 0 ? "become a prompt" : "listen elsewhere");
        for (bool struck = true; struck; move_on(&sweep)) {
            uint16_t now = 0;
            arm(&sweep);
            llm_status status = llm_set_role(end.dd, LLM_ROLE_PROMPT, address, 1);
            struck = disarm(&sweep);
            if (status != LLM_SUCCESS) {
                check_failed(&sweep, status, LLM_FAILED);
                assert_int_equal(end.dd->role, turn == 0 ? LLM_ROLE_DECODER : LLM_ROLE_PROMPT);
                llm_status listens = llm_get_listen_port(end.dd, 0, &now);
                assert_true(turn == 0 ? listens == LLM_PARAM_INVALID : now == port);
                await_rest(&sweep);
                assert_ok(llm_set_role(end.dd, LLM_ROLE_PROMPT, address, 1));
            }
            assert_ok(llm_get_listen_port(end.dd, 0, &port));
            if (turn == 0)
                assert_ok(llm_set_role(end.dd, LLM_ROLE_DECODER, NULL, 0));
            await_rest(&sweep);
        }
        sweep_end(&sweep);
        assert_true(sweep.num_struck > 5);
        assert_ok(llm_set_role(end.dd, LLM_ROLE_PROMPT, address, 1));
        assert_ok(llm_get_listen_port(end.dd, 0, &port));
    }
    llm_destroy(end.dd);
}

// ---- two linked ones ----

struct pair {
    struct end owner;
    struct end user;
    struct kv of_owner;
    struct kv of_user;
    struct sweep sweep;
};

static void
open_cache(struct kv *kv, struct end *end, bool registered)
{
    if (registered)
        kv_open(kv, end, TENSORS, SLOTS, 3000);
    else
        kv_allocate(kv, end, TENSORS, SLOTS, 3000);
}

static void
pair_open(struct pair *pair, const char *transports, bool registered)
{
    struct end_setup setup = {
        .id = OWNER, .transports = transports, .listens = true, .liveness_ms = LIVENESS_MS};
    memset(pair, 0, sizeof(*pair));
    end_open(&pair->owner, &setup);
    setup.id = USER;
    setup.listens = false;
    end_open(&pair->user, &setup);
    open_cache(&pair->of_owner, &pair->owner, registered);
    open_cache(&pair->of_user, &pair->user, registered);
    pair->sweep.ends[0] = &pair->owner;
    pair->sweep.ends[1] = &pair->user;
    pair->sweep.before = belongings();
}

static void
pair_close(struct pair *pair)
{
    end_close(&pair->user);
    end_close(&pair->owner);
    kv_free(&pair->of_owner);
    kv_free(&pair->of_user);
}

static void
name_owner(const struct pair *pair, llm_ip_info *local, llm_ip_info *remote,
           llm_cluster_info *ret_info)
{
    *local = (llm_ip_info){.ip = "127.0.0.1"};
    *remote = (llm_ip_info){.ip = "127.0.0.1", .port = pair->owner.port};
    *ret_info = (llm_cluster_info){
        .struct_size = sizeof(*ret_info),
        .remote_cluster_id = OWNER,
        .local_ip_infos = local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = remote,
        .num_remote_ip_infos = 1,
    };
}

static bool
are_linked(const struct pair *pair)
{
    return end_state(&pair->user, OWNER, NULL) == LLM_LINK_READY &&
           (pair->owner.dd == NULL || end_state(&pair->owner, USER, NULL) == LLM_LINK_READY);
}

// Whatever is left of a link goes, here, and a new one is made.
static void
relink(struct pair *pair)
{
    assert_ok(end_unlink(&pair->user, OWNER, pair->owner.port, true));
    assert_ok(end_link(&pair->user, OWNER, pair->owner.port));
    assert_true(are_linked(pair));
}

// ... from both ends.
static void
unlink_both(struct pair *pair)
{
    assert_ok(end_unlink(&pair->user, OWNER, pair->owner.port, true));
    if (pair->owner.dd != NULL)
        assert_ok(end_unlink(&pair->owner, USER, 0, true));
}

// After a failure, which signals aren't.
static void
relink_broken(struct pair *pair)
{
    if (pair->sweep.phase != FAIL_ONE)
        fail_sweep(&pair->sweep, "the link to cluster %d is broken", OWNER);
    relink(pair);
}

static void
check_pull(struct pair *pair)
{
    struct job job = {.peer = OWNER, .remote = pair->of_owner.id, .count = SLOTS, .shift = 1};
    kv_fill(&pair->of_user, 0);
    llm_status status = job_run(&job, &pair->user, &pair->of_user);
    // What failed at the other end may be noticed here a moment later.
    if (status == LLM_FAILED && pair->sweep.other != NULL && !are_linked(pair)) {
        relink_broken(pair);
        status = job_run(&job, &pair->user, &pair->of_user);
    }
    if (status != LLM_SUCCESS)
        fail_sweep(&pair->sweep, "afterwards a pull answers %s", llm_status_name(status));
    assert_true(kv_holds(&pair->of_user, 5, SLOTS, 1));
}

// With both ends here, or with the owner in another process.
static void
sweep_link(struct pair *pair, const char *what)
{
    struct sweep *sweep = &pair->sweep;
    sweep_begin(sweep, what);
    for (bool struck = true; struck; move_on(sweep)) {
        llm_ip_info local;
        llm_ip_info remote;
        llm_cluster_info info;
        llm_status result = 77;
        size_t num_results = 77;
        name_owner(pair, &local, &remote, &info);
        arm(sweep);
        llm_status status =
            llm_link_clusters(pair->user.dd, &info, 1, &result, &num_results, PATIENCE_MS);
        struck = disarm(sweep);
        if (status != LLM_SUCCESS) {
            if (!struck)
                fail_sweep(sweep, "nothing has failed, but linking answers %s",
                           llm_status_name(status));
            check_failed(sweep, status, LLM_LINK_FAILED);
            assert_int_equal(num_results, 1);
            if (result != LLM_LINK_FAILED)
                fail_sweep(sweep, "the result is %s", llm_status_name(result));
            assert_int_equal(end_state(&pair->user, OWNER, NULL), 0);
            relink(pair);
        }
        // The connection of a link that had been made may be what failed.
        if (!are_linked(pair)) {
            assert_true(struck);
            relink_broken(pair);
        }
        check_pull(pair);
        unlink_both(pair);
        await_rest(sweep);
    }
    sweep_end(sweep);
    assert_true(sweep->num_struck > 20);
}

static void
test_link(void **state)
{
    static const char *const transports[] = {"local", "shm", "tcp", "local,shm,tcp"};
    (void)state;
    for (size_t i = 0; i < LENGTH(transports); i++) {
        struct pair pair;
        char what[64];
        pair_open(&pair, transports[i], i % 2 == 0);
        kv_fill(&pair.of_owner, 5);
        snprintf(what, sizeof(what), "link over %s", transports[i]);
        sweep_link(&pair, what);
        pair_close(&pair);
    }
}

static void
sweep_unlink(struct pair *pair, const char *what, bool force)
{
    struct sweep *sweep = &pair->sweep;
    sweep_begin(sweep, what);
    for (bool struck = true; struck; move_on(sweep)) {
        llm_ip_info local;
        llm_ip_info remote;
        llm_cluster_info info;
        llm_status result = 77;
        size_t num_results = 77;
        relink(pair);
        name_owner(pair, &local, &remote, &info);
        arm(sweep);
        llm_status status =
            llm_unlink_clusters(pair->user.dd, &info, 1, &result, &num_results, PATIENCE_MS, force);
        struck = disarm(sweep);
        assert_int_equal(num_results, 1);
        if (status != LLM_SUCCESS) {
            assert_true(struck && !force);
            check_failed(sweep, status, LLM_UNLINK_FAILED, LLM_NOTIFY_PROMPT_UNLINK_FAILED);
            assert_int_equal(status, result);
            // Version 2 keeps a link that it found broken.
            if (result == LLM_UNLINK_FAILED)
                assert_ok(end_unlink(&pair->user, OWNER, pair->owner.port, true));
        }
        assert_int_equal(end_state(&pair->user, OWNER, NULL), 0);
        unlink_both(pair);
        await_rest(sweep);
    }
    sweep_end(sweep);
}

static void
test_unlink(void **state)
{
    static const char *const transports[] = {"local", "shm", "tcp"};
    (void)state;
    for (size_t i = 0; i < LENGTH(transports); i++) {
        struct pair pair;
        pair_open(&pair, transports[i], false);
        sweep_unlink(&pair, "unlink", false);
        assert_true(pair.sweep.num_struck > 5);
        sweep_unlink(&pair, "unlink by force", true);
        pair_close(&pair);
    }
}

// ---- transfers ----

enum way { WAIT, START, CANCEL };

static const char note[] = "from the other end";

static llm_status
run_transfer(const struct job *job, enum way way, struct end *end, const struct kv *kv)
{
    uint64_t id = UINT64_MAX;
    if (way == WAIT)
        return job_run(job, end, kv);
    llm_status status = job_start(job, end, kv, &id);
    if (status != LLM_SUCCESS) {
        assert_true(id == UINT64_MAX);
        return status;
    }
    if (way == CANCEL)
        assert_ok(llm_transfer_cancel(end->dd, id));
    status = llm_transfer_wait(end->dd, id, PATIENCE_MS);
    assert_true(status != LLM_TRANSFER_PENDING);
    assert_ok(llm_transfer_release(end->dd, id));
    return status;
}

static void
drain_notes(struct end *end)
{
    uint8_t bytes[LLM_NOTIFICATION_BYTES_MAX];
    size_t num_bytes;
    while (end->dd != NULL &&
           llm_poll_notification(end->dd, NULL, bytes, sizeof(bytes), &num_bytes) == LLM_SUCCESS)
        assert_int_equal(num_bytes, sizeof(note));
}

// The user pulls from the owner, or pushes to it.
static void
sweep_transfer(struct pair *pair, const char *what, bool push, bool slot, enum way way)
{
    struct sweep *sweep = &pair->sweep;
    struct job job = {
        .push = push,
        .slot = slot,
        .peer = OWNER,
        .remote = pair->of_owner.id,
        .count = slot ? 1 : SLOTS,
        .shift = 1,
        .note = slot ? note : NULL,
        .note_bytes = slot ? sizeof(note) : 0,
    };
    sweep_begin(sweep, what);
    relink(pair);
    for (bool struck = true; struck;) {
        bool elsewhere = sweep->other != NULL;
        settle(sweep);
        if (elsewhere)
            other_fill(sweep->other, 0, push ? 0 : 5);
        else
            kv_fill(&pair->of_owner, push ? 0 : 5);
        kv_fill(&pair->of_user, push ? 5 : 0);
        arm(sweep);
        llm_status status = run_transfer(&job, way, &pair->user, &pair->of_user);
        struck = disarm(sweep);
        if (status == LLM_FAILED && !struck && sweep->num_strays++ < STRAYS_MAX) {
            // What failed there a moment ago has broken the link now: this number again.
            relink_broken(pair);
            struck = true;
            continue;
        }
        if (status != LLM_SUCCESS && status != LLM_TRANSFER_CANCELLED) {
            if (!struck)
                fail_sweep(sweep, "nothing has failed, but it answers %s", llm_status_name(status));
            check_failed(sweep, status, LLM_FAILED);
            // Nothing lands any more in memory of the caller's.
            kv_fill(&pair->of_user, 9);
            settle(sweep);
            assert_true(kv_holds(&pair->of_user, 9, SLOTS, 0));
        }
        if (!are_linked(pair))
            relink_broken(pair);
        if (status != LLM_SUCCESS) {
            kv_fill(&pair->of_user, push ? 5 : 0);
            // The other end may notice a moment later that the link was broken.
            status = job_run(&job, &pair->user, &pair->of_user);
            if (status == LLM_FAILED) {
                relink(pair);
                status = job_run(&job, &pair->user, &pair->of_user);
            }
            if (status != LLM_SUCCESS)
                fail_sweep(sweep, "repeated, it answers %s", llm_status_name(status));
        }
        if (!push)
            assert_true(slot ? kv_slot_holds(&pair->of_user, 0, 1, 5, 0, 1)
                             : kv_holds(&pair->of_user, 5, SLOTS, 1));
        else if (elsewhere)
            assert_true(slot || other_holds(sweep->other, 0, 5, SLOTS, 1));
        else
            assert_true(slot ? kv_slot_holds(&pair->of_owner, 0, 1, 5, 0, 1)
                             : kv_holds(&pair->of_owner, 5, SLOTS, 1));
        drain_notes(&pair->owner);
        move_on(sweep);
    }
    sweep_end(sweep);
    unlink_both(pair);
    await_rest(sweep);
}

static void
sweep_transfers(struct pair *pair, const char *transports, bool registered)
{
    static const char *const ways[] = {"", "started ", "cancelled "};
    for (unsigned i = 0; i < 12; i++) {
        bool push = i % 2 == 1;
        bool slot = i / 2 % 2 == 1;
        enum way way = (enum way)(i / 4);
        char what[96];
        snprintf(what, sizeof(what), "%s%s of %s over %s, %s memory", ways[way],
                 push ? "push" : "pull", slot ? "a slot with a notification" : "blocks", transports,
                 registered ? "registered" : "allocated");
        sweep_transfer(pair, what, push, slot, way);
    }
}

static void
transfers_over(const char *transports)
{
    for (unsigned registered = 0; registered < 2; registered++) {
        struct pair pair;
        pair_open(&pair, transports, registered);
        sweep_transfers(&pair, transports, registered);
        pair_close(&pair);
    }
}

static void
test_transfers_over_local(void **state)
{
    (void)state;
    transfers_over("local");
}

static void
test_transfers_over_tcp(void **state)
{
    (void)state;
    transfers_over("tcp");
}

// ---- what peers have, by keys, under leases ----

// A query, and a pull of what it has found: under a lease, by a key that it takes, to the last byte.
static llm_status
find_and_pull(struct pair *pair, const llm_cache_key *key, uint64_t lease)
{
    llm_cache_index index = {.struct_size = sizeof(index), .cluster_id = OWNER, .key = key};
    llm_cache_info info = {.struct_size = sizeof(info)};
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    llm_progress progress = {.struct_size = sizeof(progress)};
    llm_cache to = kv_cache(&pair->of_user);
    const uint64_t blocks[] = {1};
    LLI_TRY(llm_query_cache(pair->user.dd, &index, &info));
    assert_int_equal(info.cache_id, pair->of_owner.id);
    assert_int_equal(info.batch_index, 1);
    param.progress = &progress;
    LLI_TRY(llm_pull_kv_cache_to_blocks(pair->user.dd, &index, &to, blocks, 1, -1, &param));
    assert_int_equal(progress.bytes_arrived, progress.total_bytes);
    index.key = NULL;
    index.cache_id = pair->of_owner.id;
    index.batch_index = 2;
    index.generation = lease;
    param.progress = NULL;
    param.release_lease = 1;
    return llm_pull_kv_cache(pair->user.dd, &index, &to, 2, -1, &param);
}

static void
test_keys_and_leases(void **state)
{
    static const char *const transports[] = {"local", "tcp"};
    const llm_cache_key keys[] = {
        {.struct_size = sizeof(keys[0]), .kind = LLM_KEY_NONE},
        {.struct_size = sizeof(keys[0]), .kind = LLM_KEY_REQUEST, .id = 77},
    };
    (void)state;
    for (size_t i = 0; i < LENGTH(transports); i++) {
        struct pair pair;
        char what[64];
        pair_open(&pair, transports[i], i == 0);
        kv_fill(&pair.of_owner, 5);
        snprintf(what, sizeof(what), "keys and leases over %s", transports[i]);
        sweep_begin(&pair.sweep, what);
        relink(&pair);
        for (bool struck = true; struck; move_on(&pair.sweep)) {
            uint64_t lease = 0;
            llm_lease_desc desc = {
                .struct_size = sizeof(desc),
                .cache_id = pair.of_owner.id,
                .duration_ms = 600000,
                .num_releases = 1,
            };
            kv_fill(&pair.of_user, 0);
            arm(&pair.sweep);
            assert_ok(llm_bind_cache_keys(pair.owner.dd, pair.of_owner.id, keys, 2));
            assert_ok(llm_lease_open(pair.owner.dd, &desc, &lease));
            assert_ok(llm_lease_renew(pair.owner.dd, lease, 600000));
            llm_status status = find_and_pull(&pair, &keys[1], lease);
            struck = disarm(&pair.sweep);
            if (status != LLM_SUCCESS) {
                assert_true(struck || pair.sweep.num_strays++ < STRAYS_MAX);
                check_failed(&pair.sweep, status, LLM_FAILED);
                struck = true;
            } else {
                assert_true(kv_slot_holds(&pair.of_user, 0, 1, 5, 0, 1));
                assert_true(kv_slot_holds(&pair.of_user, 1, 2, 5, 1, 2));
                assert_ok(llm_lease_wait(pair.owner.dd, lease, PATIENCE_MS));
            }
            assert_ok(llm_lease_close(pair.owner.dd, lease));
            assert_ok(llm_remove_cache_key(pair.owner.dd, &keys[1]));
            if (!are_linked(&pair))
                relink_broken(&pair);
        }
        sweep_end(&pair.sweep);
        assert_true(pair.sweep.num_struck > 20);
        unlink_both(&pair);
        await_rest(&pair.sweep);
        pair_close(&pair);
    }
}

// ---- calls that need the system little ----

static void
test_caches_and_copies(void **state)
{
    struct pair pair;
    struct kv kv;
    (void)state;
    pair_open(&pair, "local", false);
    struct sweep *sweep = &pair.sweep;
    sweep_begin(sweep, "caches, notifications and copies");
    for (bool struck = true; struck; move_on(sweep)) {
        uint8_t bytes[LLM_NOTIFICATION_BYTES_MAX];
        size_t num_bytes;
        int64_t shape[] = {SLOTS, 3000};
        llm_cache_desc desc = {
            .struct_size = sizeof(desc),
            .placement = LLM_PLACEMENT_DEVICE,
            .num_tensors = TENSORS,
            .data_type = LLM_DT_INT8,
            .shape = shape,
            .num_dims = 2,
        };
        arm(sweep);
        open_cache(&kv, &pair.user, false);
        llm_cache from = {.struct_size = sizeof(from),
                          .desc = &desc,
                          .tensor_addrs = (uintptr_t *)pair.of_user.addresses,
                          .num_tensor_addrs = TENSORS};
        llm_cache to = from;
        to.tensor_addrs = (uintptr_t *)kv.addresses;
        kv_fill(&pair.of_user, 5);
        assert_ok(llm_copy_kv_cache(pair.user.dd, &from, &to, 1, 2, 0, -1));
        assert_true(kv_slot_holds(&kv, 0, 2, 5, 0, 1));
        assert_status(llm_poll_notification(pair.user.dd, NULL, bytes, sizeof(bytes), &num_bytes),
                      LLM_NO_NOTIFICATION);
        assert_ok(llm_deallocate_cache(pair.user.dd, kv.id));
        kv_free(&kv);
        // kv_open maps memory of its own, which the library has no part in.
        struck = disarm(sweep);
        bool was_struck = sweep->struck;
        kv_map(&kv, LAYOUT_ODD, TENSORS, SLOTS, 3000);
        arm(sweep);
        kv_register(&kv, &pair.user);
        assert_ok(llm_unregister_kv_cache(pair.user.dd, kv.id));
        struck |= disarm(sweep);
        sweep->struck |= was_struck;
        kv_free(&kv);
        await_rest(sweep);
    }
    sweep_end(sweep);
    pair_close(&pair);
}

static void
test_finalize(void **state)
{
    static const char *const transports[] = {"local", "shm", "tcp"};
    (void)state;
    for (size_t i = 0; i < LENGTH(transports) * 2; i++) {
        struct sweep sweep = {.before = belongings()};
        sweep_begin(&sweep, "finalize");
        for (bool struck = true; struck; move_on(&sweep)) {
            struct pair pair;
            pair_open(&pair, transports[i / 2], false);
            assert_ok(end_link(&pair.user, OWNER, pair.owner.port));
            arm(&sweep);
            llm_finalize(i % 2 == 0 ? pair.owner.dd : pair.user.dd);
            llm_finalize(i % 2 == 0 ? pair.user.dd : pair.owner.dd);
            struck = disarm(&sweep);
            await_rest(&sweep);
            pair_close(&pair);
        }
        sweep_end(&sweep);
    }
}

// ---- the owner is another process ----

static bool
other_obeys(struct talk *talk, const char *command, const char *words)
{
    struct syscalls_plan plan = {0};
    if (strcmp(command, "arm") == 0) {
        int deed;
        assert_int_equal(sscanf(words, "%d %" SCNu64 " %u", &deed, &plan.n, &plan.variant), 3);
        plan.deed = (enum syscalls_deed)deed;
        syscalls_arm(&plan);
        talk_say(talk, "0");
        return true;
    }
    if (strcmp(command, "disarm") == 0) {
        int error = 0;
        unsigned num_errors = 0;
        (void)syscalls_disarm();
        const char *name = syscalls_struck(&error, &num_errors);
        talk_say(talk, "%s %d %u", name, error, num_errors);
        return true;
    }
    return false;
}

static void
sweep_with_another_process(const char *transports, bool there)
{
    struct pair pair = {0};
    struct other other = {0};
    char what[96];
    struct end_setup setup = {
        .id = OWNER, .transports = transports, .listens = true, .liveness_ms = LIVENESS_MS};
    other_open(&other, &setup);
    pair.owner.port = other.port;
    setup.id = USER;
    setup.listens = false;
    end_open(&pair.user, &setup);
    pair.sweep.ends[0] = &pair.user;
    for (unsigned registered = 0; registered < 2; registered++) {
        pair.of_owner.id = other_cache(&other, 0, registered, TENSORS, SLOTS, 3000);
        other_fill(&other, 0, 5);
        open_cache(&pair.of_user, &pair.user, registered);
        pair.sweep.before = belongings();
        pair.sweep.other = &other;
        pair.sweep.there = there;
        snprintf(what, sizeof(what), "link over %s with another process, failing %s", transports,
                 there ? "there" : "here");
        if (registered)
            sweep_link(&pair, what);
        snprintf(what, sizeof(what), "%s between processes, failing %s", transports,
                 there ? "there" : "here");
        sweep_transfers(&pair, what, registered);
        kv_free(&pair.of_user);
    }
    end_close(&pair.user);
    assert_true(process_join(&other.process));
}

static void
test_another_process_over_shm(void **state)
{
    (void)state;
    sweep_with_another_process("shm", false);
}

static void
test_in_another_process_over_shm(void **state)
{
    (void)state;
    sweep_with_another_process("shm", true);
}

static void
test_in_another_process_over_tcp(void **state)
{
    (void)state;
    sweep_with_another_process("tcp", true);
}

int
main(int argc, char **argv)
{
    static const struct CMUnitTest tests[] = {
        KIT_TEST(test_initialize),
        KIT_TEST(test_set_role),
        KIT_TEST(test_link),
        KIT_TEST(test_unlink),
        KIT_TEST(test_keys_and_leases),
        KIT_TEST(test_caches_and_copies),
        KIT_TEST(test_transfers_over_local),
        KIT_TEST(test_transfers_over_tcp),
        KIT_TEST(test_another_process_over_shm),
        KIT_TEST(test_in_another_process_over_shm),
        KIT_TEST(test_in_another_process_over_tcp),
        KIT_TEST(test_finalize),
    };
    const char *role;
    struct talk talk;
    llm_set_log_level(LLM_LOG_OFF);
    if (process_role(argc, argv, &role, &talk)) {
        kit_obeys = other_obeys;
        syscalls_exempt(talk.fd);
        return kit_serve(&talk);
    }
    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
