// The results for programs: every value of every round.
#include "bench.h"

// Names and notes are ours or the system's error texts.
static void
print_string(FILE *out, const char *text)
{
    fputc('"', out);
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            fprintf(out, "\\%c", *text);
        else if ((unsigned char)*text < ' ')
            fprintf(out, "\\u%04x", (unsigned)*text);
        else
            fputc(*text, out);
    }
    fputc('"', out);
}

static void
print_ratios(FILE *out, const struct bench_table *table, const struct bench_series *series)
{
    const char *comma = "";
    fprintf(out, "\"ratios\": {");
    for (size_t i = 0; i < BENCH_YARDSTICKS_MAX; i++) {
        const struct bench_series *with = bench_find(table, series->compared[i]);
        if (with == NULL)
            continue;
        fprintf(out, "%s", comma);
        print_string(out, with->name);
        fprintf(out, ": %.6g", bench_ratio(series, with));
        comma = ", ";
    }
    fprintf(out, "}");
}

static void
print_series(FILE *out, const struct bench_table *table, const struct bench_series *series)
{
    struct bench_summary s = bench_summarize(series);
    fprintf(out, "      {\"name\": ");
    print_string(out, series->name);
    fprintf(out,
            ", \"yardstick\": %s, \"verified\": %s, \"median\": %.6g, \"min\": %.6g, "
            "\"max\": %.6g, \"low_quartile\": %.6g, \"high_quartile\": %.6g, ",
            series->yardstick ? "true" : "false", series->verified ? "true" : "false", s.median,
            s.min, s.max, s.low, s.high);
    print_ratios(out, table, series);
    fprintf(out, ", \"values\": [");
    for (unsigned i = 0; i < series->num_values; i++)
        fprintf(out, "%s%.6g", i > 0 ? ", " : "", series->values[i]);
    fprintf(out, "]}");
}

static void
print_table(FILE *out, const struct bench_table *table)
{
    fprintf(out, "    {\"name\": ");
    print_string(out, table->name);
    fprintf(out, ", \"title\": ");
    print_string(out, table->title);
    fprintf(out, ", \"note\": ");
    print_string(out, table->note);
    fprintf(out, ", \"unit\": \"%s\", \"less_is_better\": %s, \"series\": [\n", table->unit,
            table->less_is_better ? "true" : "false");
    for (size_t i = 0; i < table->num_series; i++) {
        print_series(out, table, &table->series[i]);
        fprintf(out, "%s\n", i + 1 < table->num_series ? "," : "");
    }
    fprintf(out, "    ]}");
}

static void
print_goal(FILE *out, const struct bench_goal *goal, double value)
{
    fprintf(out, "    {\"table\": \"%s\", \"series\": \"%s\", \"than\": \"%s\", ", goal->table,
            goal->series, goal->than != NULL ? goal->than : "");
    fprintf(out, "\"at_most\": %s, \"bound\": %.6g, \"measured\": %.6g, \"met\": %s}",
            goal->at_most ? "true" : "false", goal->bound, value,
            bench_goal_met(goal, value) ? "true" : "false");
}

static void
print_goals(FILE *out, const struct bench_options *options, const struct bench_table *tables,
            size_t num_tables)
{
    const char *comma = "";
    for (size_t i = 0; i < bench_num_goals; i++) {
        double value;
        if (!bench_goal_measure(&bench_goals[i], options, tables, num_tables, &value))
            continue;
        fprintf(out, "%s", comma);
        print_goal(out, &bench_goals[i], value);
        comma = ",\n";
    }
    fprintf(out, "\n");
}

bool
bench_print_json(FILE *out, const struct bench *bench, const struct bench_table *tables,
                 size_t num_tables, bool ok)
{
    const struct bench_options *options = bench->options;
    char machine[160];
    fprintf(out, "{\n  \"bench\": 1, \"version\": \"%s\", \"machine\": ", llm_version());
    print_string(out, bench_machine(machine, sizeof(machine)));
    fprintf(out, ", \"ucx\": ");
    print_string(out, bench->ucx_missing[0] != '\0' ? bench->ucx_missing : bench->ucx_version);
    fprintf(out,
            ", \"set\": \"%s\", \"clock\": \"%s\", \"rounds\": %u, \"ok\": %s, \"tables\": [\n",
            options->long_set ? "long" : "short", options->cpu_clock ? "cpu" : "wall",
            options->rounds, ok ? "true" : "false");
    for (size_t i = 0; i < num_tables; i++) {
        print_table(out, &tables[i]);
        fprintf(out, "%s\n", i + 1 < num_tables ? "," : "");
    }
    fprintf(out, "  ], \"goals\": [\n");
    print_goals(out, options, tables, num_tables);
    fprintf(out, "  ]\n}\n");
    return fflush(out) == 0;
}
