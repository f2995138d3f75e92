// A plot for people: a bar for each median speed, a line from the least to the most.
#include "bench.h"

#include <errno.h>
#include <string.h>

enum { WIDTH = 860, LEFT = 190, BAR = 16, TITLE = 34, TOP = 60, RIGHT = 80 };

static bool
is_speed(const struct bench_table *table)
{
    return strncmp(table->unit, "GB/", 3) == 0;
}

static const char *
unit(const struct bench_table *tables, size_t num_tables)
{
    for (size_t i = 0; i < num_tables; i++) {
        if (is_speed(&tables[i]))
            return tables[i].unit;
    }
    return "GB/s";
}

static double
fastest(const struct bench_table *tables, size_t num_tables)
{
    double most = 1;
    for (size_t i = 0; i < num_tables; i++) {
        for (size_t k = 0; is_speed(&tables[i]) && k < tables[i].num_series; k++) {
            double value = bench_summarize(&tables[i].series[k]).max;
            most = value > most ? value : most;
        }
    }
    return most;
}

static int
height(const struct bench_table *tables, size_t num_tables)
{
    size_t pixels = TOP;
    for (size_t i = 0; i < num_tables; i++)
        pixels += is_speed(&tables[i]) ? TITLE + BAR * tables[i].num_series : 0;
    return (int)pixels + 20;
}

static const char *
color(const struct bench_series *series)
{
    if (series->yardstick)
        return "#b8b8b8";
    if (strncmp(series->name, "tcp", 3) == 0)
        return "#c8792c";
    return strncmp(series->name, "local", 5) == 0 ? "#6aa84f" : "#3b6fb5";
}

static void
draw_bar(FILE *out, const struct bench_series *series, int y, double scale)
{
    struct bench_summary s = bench_summarize(series);
    fprintf(out,
            "<text x=\"%d\" y=\"%d\" text-anchor=\"end\">%s</text>"
            "<rect x=\"%d\" y=\"%d\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>"
            "<path d=\"M%.1f %dH%.1f\" stroke=\"#222\"/>"
            "<text x=\"%.1f\" y=\"%d\">%.2f</text>\n",
            LEFT - 8, y + 11, series->name, LEFT, y + 2, s.median * scale, BAR - 4, color(series),
            LEFT + s.min * scale, y + BAR / 2, LEFT + s.max * scale,
            LEFT + (s.max > s.median ? s.max : s.median) * scale + 6, y + 11, s.median);
}

static int
draw_table(FILE *out, const struct bench_table *table, int y, double scale)
{
    fprintf(out, "<text x=\"10\" y=\"%d\" font-weight=\"bold\">%s: %s</text>\n", y + TITLE - 10,
            table->name, table->title);
    y += TITLE;
    for (size_t i = 0; i < table->num_series; i++, y += BAR)
        draw_bar(out, &table->series[i], y, scale);
    return y;
}

bool
bench_write_svg(const char *path, const struct bench_table *tables, size_t num_tables,
                struct bench_error *error)
{
    char machine[160];
    double scale = (WIDTH - LEFT - RIGHT) / fastest(tables, num_tables);
    int y = TOP - 20;
    FILE *out = fopen(path, "w");
    if (out == NULL)
        return bench_fail(error, "%s: %s", path, strerror(errno));
    int h = height(tables, num_tables);
    fprintf(out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" "
            "font-family=\"sans-serif\" font-size=\"11\">\n"
            "<rect width=\"%d\" height=\"%d\" fill=\"white\"/>\n"
            "<text x=\"10\" y=\"20\" font-size=\"14\">llm-datadist %s, %s: medians, the lines "
            "run from the least to the most; grey: yardsticks</text>\n"
            "<text x=\"10\" y=\"36\">%s</text>\n",
            WIDTH, h, WIDTH, h, llm_version(), unit(tables, num_tables),
            bench_machine(machine, sizeof(machine)));
    for (size_t i = 0; i < num_tables; i++) {
        if (is_speed(&tables[i]))
            y = draw_table(out, &tables[i], y, scale);
    }
    fprintf(out, "</svg>\n");
    bool ok = ferror(out) == 0;
    return fclose(out) == 0 && ok ? true : bench_fail(error, "%s: %s", path, strerror(errno));
}
