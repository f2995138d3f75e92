// Levels, the environment, the sink, the last error of each thread, one line per event.
#include "base/log.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

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
        lli_log(LLM_LOG_WARN, "room", "%d", i);
    return NULL;
}

// A sink may be freed as soon as llm_set_log_sink has returned: AddressSanitizer watches.
static void
test_a_replaced_sink_is_not_called_any_more(void **state)
{
    pthread_t threads[2];
    unsigned total = 0;
    (void)state;
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
        assert_int_equal(strstr(text, "llm_datadist warn room: a warning\n") != NULL,
                         level >= LLM_LOG_WARN);
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
    };
    if (argc > 1 && strcmp(argv[1], "child") == 0)
        return child();
    // The test chooses levels itself.
    unsetenv("LLM_DATADIST_LOG_LEVEL");
    return cmocka_run_group_tests(tests, NULL, NULL);
}
