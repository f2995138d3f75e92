// Levels, the environment, the sink, the last error of each thread, one line per event.
#include "base/log.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/lock.h"
#include "base/log_limit.h"
#include "base/log_out.h"
#include "unit/unit.h"

static struct {
    _Atomic unsigned num_lines;
    llm_log_level level;
    char line[2048];
} seen;

static void
capture(void *arg, llm_log_level level, const char *line)
{
    assert_ptr_equal(arg, &seen);
    atomic_fetch_add(&seen.num_lines, 1);
    seen.level = level;
    snprintf(seen.line, sizeof(seen.line), "%s", line);
}

static int
setup(void **state)
{
    (void)state;
    memset(&seen, 0, sizeof(seen));
    llm_set_log_level(LLM_LOG_WARN);
    llm_set_log_sink(capture, &seen);
    lli_set_last_error("");
    return 0;
}

static int
teardown(void **state)
{
    (void)state;
    llm_set_log_sink(NULL, NULL);
    return 0;
}

static void
test_only_levels_up_to_the_chosen_one_are_logged(void **state)
{
    (void)state;
    for (int chosen = LLM_LOG_OFF; chosen <= LLM_LOG_DEBUG; chosen++) {
        llm_set_log_level((llm_log_level)chosen);
        for (int level = LLM_LOG_ERROR; level <= LLM_LOG_DEBUG; level++) {
            unsigned before = atomic_load(&seen.num_lines);
            lli_log_begin_anew();
            lli_log((llm_log_level)level, "room", "%d", level);
            assert_int_equal(atomic_load(&seen.num_lines) - before, level <= chosen);
            assert_int_equal(lli_log_enabled((llm_log_level)level), level <= chosen);
        }
    }
}

static void
test_levels_out_of_range_change_nothing(void **state)
{
    (void)state;
    llm_set_log_level((llm_log_level)5);
    assert_false(lli_log_enabled(LLM_LOG_INFO));
    llm_set_log_level((llm_log_level)-1);
    assert_true(lli_log_enabled(LLM_LOG_WARN));
}

static void
test_level_names_are_read_exactly(void **state)
{
    static const char *const names[] = {"off", "error", "warn", "info", "debug"};
    static const char *const others[] = {"", "Error", "warn ", " info", "warning", "3", "debugg"};
    llm_log_level level;
    (void)state;
    for (size_t i = 0; i < LLI_COUNT(names); i++) {
        assert_true(lli_log_level_parse(names[i], &level));
        assert_int_equal(level, i);
    }
    for (size_t i = 0; i < LLI_COUNT(others); i++)
        assert_false(lli_log_level_parse(others[i], &level));
}

static void
test_a_line_names_its_room(void **state)
{
    (void)state;
    lli_log(LLM_LOG_WARN, "tcp", "%s has %d", "it", 7);
    assert_string_equal(seen.line, "tcp: it has 7");
    assert_int_equal(seen.level, LLM_LOG_WARN);
}

static void
test_one_event_is_one_line_whatever_it_quotes(void **state)
{
    (void)state;
    lli_log(LLM_LOG_WARN, "link", "%s", "a\nb\r\tc\x1b[31m\x7f");
    assert_string_equal(seen.line, "link: a?b??c?[31m?");
    assert_int_equal(atomic_load(&seen.num_lines), 1);
    lli_log(LLM_LOG_WARN, "link", "%s", "gr\xc3\xbc\xc3\x9f");
    assert_string_equal(seen.line, "link: gr\xc3\xbc\xc3\x9f");
}

static void
test_a_long_line_is_cut(void **state)
{
    char text[4096];
    char last[4096];
    (void)state;
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    assert_true(lli_fail(LLM_FAILED, "room", "%s", text) == LLM_FAILED);
    assert_true(strlen(seen.line) < 1200);
    size_t length = llm_last_error(last, sizeof(last));
    assert_int_equal(length, strlen(last));
    assert_true(strncmp(last, "room: xxx", 9) == 0);
    // The status is not what is cut.
    assert_non_null(strstr(seen.line, "(LLM_FAILED)"));
}

static void
test_a_failure_is_one_error_line_with_its_status(void **state)
{
    char last[256];
    (void)state;
    assert_true(lli_fail(LLM_LINK_BUSY, "link", "cluster %d", 3) == LLM_LINK_BUSY);
    assert_int_equal(atomic_load(&seen.num_lines), 1);
    assert_int_equal(seen.level, LLM_LOG_ERROR);
    assert_string_equal(seen.line, "link: cluster 3 (LLM_LINK_BUSY)");
    assert_int_equal(llm_last_error(last, sizeof(last)), strlen("link: cluster 3"));
    assert_string_equal(last, "link: cluster 3");
}

static void
test_a_failure_is_kept_when_nothing_is_logged(void **state)
{
    char last[64];
    (void)state;
    llm_set_log_level(LLM_LOG_OFF);
    (void)lli_fail(LLM_FAILED, "room", "quiet");
    assert_int_equal(atomic_load(&seen.num_lines), 0);
    llm_last_error(last, sizeof(last));
    assert_string_equal(last, "room: quiet");
}

static void
test_last_error_fills_any_buffer(void **state)
{
    (void)state;
    lli_set_last_error("0123456789");
    for (size_t size = 0; size <= 16; size++) {
        char to[17];
        memset(to, '#', sizeof(to));
        assert_int_equal(llm_last_error(to, size), 10);
        if (size > 0)
            assert_int_equal(strlen(to), size > 10 ? 10 : size - 1);
        for (size_t i = size; i < sizeof(to); i++)
            assert_int_equal(to[i], '#');
    }
    assert_int_equal(llm_last_error(NULL, 0), 10);
    assert_int_equal(llm_last_error(NULL, 5), 10);
}

static void *
fail_elsewhere(void *arg)
{
    bool *was_empty = arg;
    *was_empty = llm_last_error(NULL, 0) == 0;
    (void)lli_fail(LLM_FAILED, "room", "elsewhere");
    return NULL;
}

static void
test_each_thread_has_its_own_last_error(void **state)
{
    pthread_t thread;
    bool was_empty = false;
    char last[64];
    (void)state;
    (void)lli_fail(LLM_FAILED, "room", "here");
    assert_int_equal(pthread_create(&thread, NULL, fail_elsewhere, &was_empty), 0);
    pthread_join(thread, NULL);
    assert_true(was_empty);
    llm_last_error(last, sizeof(last));
    assert_string_equal(last, "room: here");
}

struct counter {
    _Atomic unsigned num_lines;
};

static void
count(void *arg, llm_log_level level, const char *line)
{
    struct counter *counter = arg;
    (void)level;
    (void)line;
    atomic_fetch_add(&counter->num_lines, 1);
}

static void *
log_much(void *arg)
{
    (void)arg;
    for (int i = 0; i < 1000; i++)
        lli_log(LLM_LOG_INFO, "room", "%d", i);
    return NULL;
}

// A sink may be freed as soon as llm_set_log_sink has returned: AddressSanitizer watches.
static void
test_a_replaced_sink_is_not_called_any_more(void **state)
{
    pthread_t threads[2];
    unsigned total = 0;
    (void)state;
    llm_set_log_level(LLM_LOG_INFO);
    struct counter *first = unit_alloc(sizeof(*first));
    llm_set_log_sink(count, first);
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        assert_int_equal(pthread_create(&threads[i], NULL, log_much, NULL), 0);
    struct counter *second = unit_alloc(sizeof(*second));
    llm_set_log_sink(count, second);
    total += atomic_load(&first->num_lines);
    free(first);
    for (size_t i = 0; i < LLI_COUNT(threads); i++)
        pthread_join(threads[i], NULL);
    llm_set_log_sink(NULL, NULL);
    total += atomic_load(&second->num_lines);
    free(second);
    assert_int_equal(total, 2000);
}

// ---- the environment, which is read once per process ----

// What the child does: asks for "error" and logs one warning to standard error.
static int
child(void)
{
    llm_set_log_level(LLM_LOG_ERROR);
    lli_log(LLM_LOG_WARN, "room", "a warning");
    for (int level = LLM_LOG_DEBUG; level > LLM_LOG_OFF; level--) {
        if (lli_log_enabled((llm_log_level)level))
            return 10 + level;
    }
    return 10;
}

// The highest level that a child logs with that environment; what it writes is in `text`.
static int
level_of_child(const char *environment, char *text, size_t text_size)
{
    int ends[2];
    int status = 0;
    size_t length = 0;
    assert_int_equal(pipe(ends), 0);
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(ends[1], STDERR_FILENO);
        close(ends[0]);
        close(ends[1]);
        if (environment != NULL)
            setenv("LLM_DATADIST_LOG_LEVEL", environment, 1);
        else
            unsetenv("LLM_DATADIST_LOG_LEVEL");
        execl("/proc/self/exe", "log_test", "child", (char *)NULL);
        _exit(1);
    }
    close(ends[1]);
    ssize_t got;
    while (length + 1 < text_size &&
           (got = read(ends[0], text + length, text_size - 1 - length)) > 0)
        length += (size_t)got;
    text[length] = '\0';
    close(ends[0]);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) >= 10);
    return WEXITSTATUS(status) - 10;
}

static void
test_the_environment_wins(void **state)
{
    static const char *const names[] = {"off", "error", "warn", "info", "debug"};
    char text[1024];
    (void)state;
    for (int level = LLM_LOG_OFF; level <= LLM_LOG_DEBUG; level++) {
        assert_int_equal(level_of_child(names[level], text, sizeof(text)), level);
        assert_int_equal(strstr(text, "] warn room: a warning\n") != NULL, level >= LLM_LOG_WARN);
    }
}

static void
test_without_environment_the_program_chooses(void **state)
{
    char text[1024];
    (void)state;
    assert_int_equal(level_of_child(NULL, text, sizeof(text)), LLM_LOG_ERROR);
    assert_string_equal(text, "");
    assert_int_equal(level_of_child("", text, sizeof(text)), LLM_LOG_ERROR);
    assert_string_equal(text, "");
}

static void
test_a_wrong_environment_is_named_and_ignored(void **state)
{
    char text[1024];
    (void)state;
    assert_int_equal(level_of_child("loud", text, sizeof(text)), LLM_LOG_ERROR);
    assert_non_null(strstr(text, "LLM_DATADIST_LOG_LEVEL is \"loud\""));
}

// ---- where it goes ----

static void
test_a_line_on_standard_error_has_date_zone_and_process(void **state)
{
    char text[1024];
    unsigned year, month, day, hour, minute, second, ms, pid;
    int zone;
    (void)state;
    level_of_child("warn", text, sizeof(text));
    assert_int_equal(sscanf(text, "%4u-%2u-%2uT%2u:%2u:%2u.%3u%d llm_datadist[%u] warn room: a",
                            &year, &month, &day, &hour, &minute, &second, &ms, &zone, &pid),
                     9);
    assert_true(year >= 2024 && month <= 12 && day <= 31 && pid > 1);
}

static void *
speak_for_seven(void *arg)
{
    char last[64];
    (void)arg;
    lli_log_speak_for(7);
    (void)lli_fail(LLM_FAILED, "room", "here");
    assert_string_equal(seen.line, "cluster 7: room: here (LLM_FAILED)");
    llm_last_error(last, sizeof(last));
    assert_string_equal(last, "room: here");
    return NULL;
}

static void
test_a_line_names_the_cluster_that_its_thread_works_for(void **state)
{
    pthread_t thread;
    (void)state;
    assert_int_equal(pthread_create(&thread, NULL, speak_for_seven, NULL), 0);
    pthread_join(thread, NULL);
}

// Runs `write_lines` in a child whose standard error is `fd`, which must not take its time.
static void
run_with_stderr(int fd, void (*write_lines)(void))
{
    int status = 0;
    pid_t pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        dup2(fd, STDERR_FILENO);
        alarm(60); // a line that blocks
        llm_set_log_sink(NULL, NULL);
        write_lines();
        _exit(0);
    }
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
}

enum { MANY_LINES = 5000 };

static void
write_many(void)
{
    char text[256];
    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    llm_set_log_level(LLM_LOG_INFO);
    for (int i = 0; i < MANY_LINES; i++)
        lli_log(LLM_LOG_INFO, "room", "%d %s", i, text);
}

static void
write_one(void)
{
    lli_log(LLM_LOG_WARN, "room", "one");
}

static size_t
drain(int fd, char *text, size_t text_size)
{
    size_t length = 0;
    ssize_t got;
    while (length + 1 < text_size && (got = read(fd, text + length, text_size - 1 - length)) > 0)
        length += (size_t)got;
    text[length] = '\0';
    return length;
}

static void
expect_no_blocking(int reader, int writer)
{
    static char text[8 << 20];
    assert_int_equal(fcntl(reader, F_SETFL, O_NONBLOCK), 0);
    run_with_stderr(writer, write_many);
    // Others who have the descriptor feel nothing.
    assert_int_equal(fcntl(writer, F_GETFL) & O_NONBLOCK, 0);
    assert_true(drain(reader, text, sizeof(text)) > 1000);
    assert_non_null(strstr(text, "room: 0 xxx"));
    assert_null(strstr(text, "room: 4999 xxx"));
    // It was another process that lost them: this one has nothing to tell.
    run_with_stderr(writer, write_one);
    assert_true(drain(reader, text, sizeof(text)) > 0);
    assert_null(strstr(text, "lost"));
    assert_non_null(strstr(text, "room: one\n"));
    close(reader);
    close(writer);
}

static void
test_a_pipe_that_nobody_reads_holds_up_nobody(void **state)
{
    int ends[2];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    expect_no_blocking(ends[0], ends[1]);
}

static void
test_a_socket_that_nobody_reads_holds_up_nobody(void **state)
{
    int ends[2];
    (void)state;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, ends), 0);
    expect_no_blocking(ends[0], ends[1]);
}

static void
write_while_full_and_after(void)
{
    static char text[8 << 20];
    int reader = STDIN_FILENO; // of the same pipe
    write_many();
    (void)drain(reader, text, sizeof(text));
    write_one();
}

static void
test_what_a_full_pipe_has_lost_is_told_when_there_is_room(void **state)
{
    char text[1024];
    int ends[2];
    unsigned long lost = 0;
    (void)state;
    assert_int_equal(pipe(ends), 0);
    assert_int_equal(fcntl(ends[0], F_SETFL, O_NONBLOCK), 0);
    int saved = dup(STDIN_FILENO);
    dup2(ends[0], STDIN_FILENO);
    run_with_stderr(ends[1], write_while_full_and_after);
    dup2(saved, STDIN_FILENO);
    close(saved);
    (void)drain(ends[0], text, sizeof(text));
    assert_int_equal(sscanf(text, "llm_datadist warn log: %lu lines were lost", &lost), 1);
    assert_true(lost > 0 && lost < MANY_LINES);
    assert_non_null(strstr(text, "room: one\n"));
    close(ends[0]);
    close(ends[1]);
}

static void
test_a_pipe_without_a_reader_kills_nobody(void **state)
{
    int ends[2];
    (void)state;
    assert_int_equal(pipe(ends), 0);
    close(ends[0]);
    run_with_stderr(ends[1], write_many);
    close(ends[1]);
}

static void
write_beside_others(void)
{
    lli_log(LLM_LOG_WARN, "room", "first");
    assert_true(write(STDERR_FILENO, "second\n", 7) == 7);
    lli_log(LLM_LOG_WARN, "room", "third");
}

static void
test_a_file_keeps_what_others_write_to_it(void **state)
{
    char name[] = "/tmp/log_test_XXXXXX";
    char text[1024];
    (void)state;
    int fd = mkstemp(name);
    assert_true(fd >= 0);
    unlink(name);
    run_with_stderr(fd, write_beside_others);
    ssize_t length = pread(fd, text, sizeof(text) - 1, 0);
    assert_true(length > 0);
    text[length] = '\0';
    const char *first = strstr(text, "room: first\n");
    assert_non_null(first);
    const char *second = strstr(first, "\nsecond\n");
    assert_non_null(second);
    assert_non_null(strstr(second, "room: third\n"));
    close(fd);
}

// ---- locks ----

static void
test_a_thread_that_holds_a_lock_speaks_when_it_has_let_go(void **state)
{
    pthread_mutex_t outer = PTHREAD_MUTEX_INITIALIZER;
    pthread_mutex_t inner = PTHREAD_MUTEX_INITIALIZER;
    char last[64];
    (void)state;
    lli_lock(&outer);
    lli_lock(&inner);
    (void)lli_fail(LLM_FAILED, "room", "first");
    lli_log(LLM_LOG_WARN, "room", "second");
    llm_last_error(last, sizeof(last));
    assert_string_equal(last, "room: first");
    lli_unlock(&inner);
    assert_int_equal(atomic_load(&seen.num_lines), 0);
    lli_unlock(&outer);
    assert_int_equal(atomic_load(&seen.num_lines), 2);
    assert_string_equal(seen.line, "room: second");
}

// ---- repeats ----

static const uint64_t SECOND_NS = 1000000000u;

static void
test_a_text_is_said_once_a_second_at_each_place(void **state)
{
    static const char here[] = "%s", there[] = "%s ";
    uint64_t now = SECOND_NS;
    struct lli_log_left_out left_out;
    (void)state;
    assert_true(lli_log_is_said(LLM_LOG_ERROR, here, "a", now));
    for (int i = 0; i < 999; i++)
        assert_false(lli_log_is_said(LLM_LOG_ERROR, here, "a", now + 1));
    assert_true(lli_log_is_said(LLM_LOG_ERROR, here, "b", now + 1));
    assert_true(lli_log_is_said(LLM_LOG_ERROR, there, "a", now + 1));
    assert_false(lli_log_take_left_out(now + SECOND_NS - 1, &left_out));
    assert_true(lli_log_take_left_out(now + SECOND_NS, &left_out));
    assert_int_equal(left_out.num_lines, 999);
    assert_int_equal(left_out.level, LLM_LOG_ERROR);
    assert_string_equal(left_out.gist, "a");
    assert_false(lli_log_take_left_out(now + SECOND_NS, &left_out));
    assert_true(lli_log_is_said(LLM_LOG_ERROR, here, "a", now + SECOND_NS));
}

static void
test_a_place_says_a_limited_number_of_texts_a_second(void **state)
{
    static const char here[] = "%d";
    struct lli_log_left_out left_out;
    char text[16];
    unsigned said = 0;
    (void)state;
    for (int i = 0; i < 1000; i++) {
        snprintf(text, sizeof(text), "%d", i);
        said += lli_log_is_said(LLM_LOG_WARN, here, text, SECOND_NS);
    }
    assert_int_equal(said, LLI_LOG_TEXTS_PER_SECOND);
    assert_true(lli_log_take_left_out(2 * SECOND_NS, &left_out));
    assert_int_equal(left_out.num_lines, 1000 - LLI_LOG_TEXTS_PER_SECOND);
    assert_string_equal(left_out.gist, "999");
}

static void
test_a_failure_that_repeats_is_told_to_each_caller_all_the_same(void **state)
{
    char last[64];
    (void)state;
    for (int i = 0; i < 3; i++) {
        lli_set_last_error("");
        (void)lli_fail(LLM_FAILED, "room", "again");
        llm_last_error(last, sizeof(last));
        assert_string_equal(last, "room: again");
    }
    assert_int_equal(atomic_load(&seen.num_lines), 1);
    lli_log_left_out(UINT64_MAX);
    assert_int_equal(atomic_load(&seen.num_lines), 2);
    assert_string_equal(seen.line, "room: again (LLM_FAILED) [2 more like it, not shown]");
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_only_levels_up_to_the_chosen_one_are_logged, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_levels_out_of_range_change_nothing, setup, teardown),
        cmocka_unit_test(test_level_names_are_read_exactly),
        cmocka_unit_test_setup_teardown(test_a_line_names_its_room, setup, teardown),
        cmocka_unit_test_setup_teardown(test_one_event_is_one_line_whatever_it_quotes, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_long_line_is_cut, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_failure_is_one_error_line_with_its_status, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_failure_is_kept_when_nothing_is_logged, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_last_error_fills_any_buffer, setup, teardown),
        cmocka_unit_test_setup_teardown(test_each_thread_has_its_own_last_error, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_replaced_sink_is_not_called_any_more, setup,
                                        teardown),
        cmocka_unit_test(test_the_environment_wins),
        cmocka_unit_test(test_without_environment_the_program_chooses),
        cmocka_unit_test(test_a_wrong_environment_is_named_and_ignored),
        cmocka_unit_test_setup_teardown(test_a_line_on_standard_error_has_date_zone_and_process,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_line_names_the_cluster_that_its_thread_works_for,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_pipe_that_nobody_reads_holds_up_nobody, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_socket_that_nobody_reads_holds_up_nobody, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_what_a_full_pipe_has_lost_is_told_when_there_is_room,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_pipe_without_a_reader_kills_nobody, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_file_keeps_what_others_write_to_it, setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_thread_that_holds_a_lock_speaks_when_it_has_let_go,
                                        setup, teardown),
        cmocka_unit_test_setup_teardown(test_a_text_is_said_once_a_second_at_each_place, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(test_a_place_says_a_limited_number_of_texts_a_second, setup,
                                        teardown),
        cmocka_unit_test_setup_teardown(
            test_a_failure_that_repeats_is_told_to_each_caller_all_the_same, setup, teardown),
    };
    if (argc > 1 && strcmp(argv[1], "child") == 0)
        return child();
    // The test chooses levels itself.
    unsetenv("LLM_DATADIST_LOG_LEVEL");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
