// Medians, spread, ratios; the table that people read.
#include "bench.h"

#include <stdlib.h>
#include <string.h>

struct bench_series *
bench_table_add(struct bench_table *table, const char *name, bool yardstick)
{
    struct bench_series *series = &table->series[table->num_series++];
    memset(series, 0, sizeof(*series));
    snprintf(series->name, sizeof(series->name), "%s", name);
    series->yardstick = yardstick;
    return series;
}

void
bench_compare(struct bench_series *series, const char *with)
{
    for (size_t i = 0; i < BENCH_YARDSTICKS_MAX; i++) {
        if (series->compared[i][0] != '\0')
            continue;
        snprintf(series->compared[i], sizeof(series->compared[i]), "%s", with);
        return;
    }
}

void
bench_add(struct bench_series *series, double value)
{
    if (series->num_values < BENCH_ROUNDS_MAX)
        series->values[series->num_values++] = value;
}

const struct bench_series *
bench_find(const struct bench_table *table, const char *name)
{
    for (size_t i = 0; i < table->num_series; i++) {
        if (strcmp(table->series[i].name, name) == 0)
            return &table->series[i];
    }
    return NULL;
}

static int
compare_values(const void *a, const void *b)
{
    double left = *(const double *)a;
    double right = *(const double *)b;
    return (left > right) - (left < right);
}

double
bench_quantile(double *values, size_t num_values, double quantile)
{
    if (num_values == 0)
        return 0;
    qsort(values, num_values, sizeof(*values), compare_values);
    double place = quantile * (double)(num_values - 1);
    size_t below = (size_t)place;
    size_t above = below + 1 < num_values ? below + 1 : below;
    return values[below] + (place - (double)below) * (values[above] - values[below]);
}

struct bench_summary
bench_summarize(const struct bench_series *series)
{
    double values[BENCH_ROUNDS_MAX];
    size_t n = series->num_values;
    memcpy(values, series->values, n * sizeof(values[0]));
    return (struct bench_summary){
        .median = bench_quantile(values, n, 0.5),
        .min = bench_quantile(values, n, 0),
        .max = bench_quantile(values, n, 1),
        .low = bench_quantile(values, n, 0.25),
        .high = bench_quantile(values, n, 0.75),
    };
}

double
bench_ratio(const struct bench_series *series, const struct bench_series *yardstick)
{
    double ratios[BENCH_ROUNDS_MAX];
    size_t n = 0;
    for (size_t i = 0; i < series->num_values && i < yardstick->num_values; i++) {
        if (yardstick->values[i] > 0)
            ratios[n++] = series->values[i] / yardstick->values[i];
    }
    return bench_quantile(ratios, n, 0.5);
}

static const char *
number(double value, char text[16])
{
    int digits = value >= 1000 ? 0 : value >= 100 ? 1 : 2;
    snprintf(text, 16, "%.*f", digits, value);
    return text;
}

static void
print_series(FILE *out, const struct bench_table *table, const struct bench_series *series)
{
    char median[16], min[16], max[16];
    struct bench_summary summary = bench_summarize(series);
    fprintf(out, "  %-24s%8s   %7s .. %-7s", series->name, number(summary.median, median),
            number(summary.min, min), number(summary.max, max));
    for (size_t i = 0; i < BENCH_YARDSTICKS_MAX; i++) {
        const struct bench_series *with = bench_find(table, series->compared[i]);
        double ratio = with != NULL ? bench_ratio(series, with) : 0;
        if (with != NULL)
            fprintf(out, ratio < 0.1 ? "  %.4f %s" : "  %5.2f %s", ratio, with->name);
    }
    fputc('\n', out);
}

void
bench_print_table(FILE *out, const struct bench_table *table)
{
    fprintf(out, "%s: %s\n  %-24s%8s   %7s .. %-7s  %s\n", table->name, table->title, "",
            table->unit, "least", "most", "times");
    for (size_t i = 0; i < table->num_series; i++)
        print_series(out, table, &table->series[i]);
    if (table->note[0] != '\0')
        fprintf(out, "  Note: %s\n", table->note);
    fputc('\n', out);
    fflush(out);
}

const char *
bench_machine(char *text, size_t size)
{
    char line[160], model[100] = "unknown processor";
    unsigned cpus = 0;
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        cpus += strncmp(line, "processor", 9) == 0;
        if (strncmp(line, "model name", 10) == 0)
            sscanf(line, "model name : %99[^\n]", model);
    }
    if (file != NULL)
        fclose(file);
    snprintf(text, size, "%s, %u processors", model, cpus);
    return text;
}
