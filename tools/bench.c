// llm-datadist bench: makes the tables that were asked for.
#include "bench.h"

#include <fnmatch.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tools.h"

void
bench_progress(const struct bench *bench, const struct bench_table *table, unsigned round)
{
    if (bench->terminal)
        fprintf(stderr, "\r\033[K[%zu/%zu] %s: round %u of %u", bench->position, bench->total,
                table->name, round, bench->options->rounds);
    else if (round == 0)
        fprintf(stderr, "[%zu/%zu] %s\n", bench->position, bench->total, table->name);
}

static void
clear_progress(const struct bench *bench)
{
    if (bench->terminal)
        fprintf(stderr, "\r\033[K");
}

static bool
is_wanted(const struct bench_options *options, const struct bench_case *which)
{
    if (options->num_only == 0)
        return options->long_set || !which->long_only;
    for (size_t i = 0; i < options->num_only; i++) {
        if (fnmatch(options->only[i], which->name, 0) == 0)
            return true;
    }
    return false;
}

static bool
run_case(struct bench *bench, const struct bench_case *which, struct bench_table *table)
{
    *table = (struct bench_table){.name = which->name, .unit = ""};
    bench->position++;
    bool ok = which->run(bench, table, which);
    clear_progress(bench);
    if (!ok)
        fprintf(stderr, "bench: FAILED: %s: %s\n", table->name, bench->error.text);
    else if (!bench->options->json)
        bench_print_table(stdout, table);
    return ok;
}

// An owner of its own for each table: what one leaves behind doesn't slow the next one down.
static bool
run_all(struct bench *bench, struct bench_table *tables, size_t *ret_num_tables)
{
    bool ok = true;
    for (size_t i = 0; i < bench_num_cases; i++) {
        if (!is_wanted(bench->options, &bench_cases[i]))
            continue;
        if (!bench_owner_start(&bench->owner, &bench->error)) {
            fprintf(stderr, "bench: FAILED: %s\n", bench->error.text);
            return false;
        }
        if (run_case(bench, &bench_cases[i], &tables[*ret_num_tables]))
            ++*ret_num_tables;
        else
            ok = false;
        bench_owner_stop(&bench->owner);
    }
    return ok;
}

static void
look_for_ucx(struct bench *bench)
{
    char path[4096];
    if (!bench_ucx_exists(path))
        snprintf(bench->ucx_missing, sizeof(bench->ucx_missing),
                 "ucx: not built in, libucx-dev was missing (there is no %.100s)", path);
}

static int
run(const struct bench_options *options)
{
    struct bench bench = {
        .options = options,
        .owner = {.fd = -1},
        .ucx = {.fd = -1},
        .terminal = isatty(2) == 1,
    };
    struct bench_table *tables = calloc(bench_num_cases, sizeof(*tables));
    char machine[160];
    size_t num_tables = 0;
    if (tables == NULL)
        return TOOL_FAILED;
    for (size_t i = 0; i < bench_num_cases; i++)
        bench.total += is_wanted(options, &bench_cases[i]);
    look_for_ucx(&bench);
    if (!options->json)
        printf("llm-datadist %s on %s; %u rounds\n%s%s\n", llm_version(),
               bench_machine(machine, sizeof(machine)), options->rounds, bench.ucx_missing,
               bench.ucx_missing[0] != '\0' ? "\n" : "");
    fflush(stdout);
    bool ok = run_all(&bench, tables, &num_tables);
    if (options->json)
        ok = bench_print_json(stdout, &bench, tables, num_tables, ok) && ok;
    else
        bench_print_goals(stdout, options, tables, num_tables);
    if (options->svg != NULL && !bench_write_svg(options->svg, tables, num_tables, &bench.error)) {
        fprintf(stderr, "bench: FAILED: %s\n", bench.error.text);
        ok = false;
    }
    free(tables);
    return ok ? TOOL_OK : TOOL_FAILED;
}

int
tool_bench(int argc, char **argv)
{
    struct bench_options options;
    int result = bench_parse(argc, argv, &options);
    if (result != TOOL_OK)
        return result;
    // What goes wrong is reported in the tool's own words; the environment can ask for more.
    llm_set_log_level(LLM_LOG_OFF);
    if (options.owner_fd >= 0)
        return bench_owner_main(options.owner_fd);
    if (options.help) {
        bench_print_help(stdout);
        return TOOL_OK;
    }
    if (options.list) {
        for (size_t i = 0; i < bench_num_cases; i++)
            printf("%-18s%s%s\n", bench_cases[i].name, bench_cases[i].help,
                   bench_cases[i].long_only ? " (long set)" : "");
        return TOOL_OK;
    }
    return run(&options);
}
