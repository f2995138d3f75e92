// llm-datadist info: the library, its options, what this machine allows; and, with --connect, how a
// link to a running instance comes about.
#include <ctype.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/address.h"
#include "llm_datadist/llm_datadist_c.h"
#include "tools.h"

struct request {
    const char *address; // HOST:PORT; NULL = no link is made
    struct lli_endpoint place;
    const char *transports; // NULL = auto
    bool json;
    bool help;
};

static void
print_help(FILE *out)
{
    fprintf(
        out,
        "usage: llm-datadist info [--connect HOST:PORT] [--transports LIST] [--json]\n"
        "\n"
        "Tells the version of the library, the copy kernel chosen for this CPU, the transports\n"
        "and the options with their defaults.\n"
        "\n"
        "    --connect HOST:PORT  link to the instance that listens there, tell which transport\n"
        "                         the link takes and why the others were passed over, unlink;\n"
        "                         that instance sees a link come and go;\n"
        "                         HOST is an IPv4 address, an [IPv6] one, or a name\n"
        "    --transports LIST    what that link may take, as for llm.Transports (auto)\n"
        "    --json               one JSON object on standard output: \"library\" and \"machine\" "
        "with\n"
        "                         the names and values that are shown without it, \"options\" "
        "with\n"
        "                         \"key\", \"default\" and \"help\" of each, and \"link\" if one "
        "was made;\n"
        "                         all values are texts\n"
        "\n"
        "Exit status: 0; 1 if the instance can't be linked with; 2 for a wrong command line.\n"
        "\n"
        "    llm-datadist info --connect 192.0.2.7:26000\n");
}

// ---- output: text, or JSON ----

static void
print_json_text(const char *text)
{
    putchar('"');
    for (; *text != '\0'; text++) {
        if (*text == '"' || *text == '\\')
            putchar('\\');
        if ((unsigned char)*text >= ' ')
            putchar(*text);
    }
    putchar('"');
}

static void
print_pair(bool json, const char *name, const char *value, bool is_last)
{
    if (!json) {
        printf("%-20s%s\n", name, value);
        return;
    }
    print_json_text(name);
    printf(": ");
    print_json_text(value);
    printf("%s", is_last ? "" : ", ");
}

// The library describes itself in lines of "name: value".
static void
print_library(bool json)
{
    char text[2048];
    llm_describe(text, sizeof(text));
    if (json)
        printf("\"library\": {");
    for (char *line = text, *end; *line != '\0'; line = end) {
        end = strchrnul(line, '\n');
        if (*end == '\n')
            *end++ = '\0';
        char *colon = strstr(line, ": ");
        if (colon == NULL)
            continue;
        *colon = '\0';
        print_pair(json, line, colon + 2, *end == '\0');
    }
    if (json)
        printf("}, ");
}

static void
print_machine(bool json)
{
    char cores[32];
    char memory[32];
    long pages = sysconf(_SC_PHYS_PAGES);
    snprintf(cores, sizeof(cores), "%ld", sysconf(_SC_NPROCESSORS_ONLN));
    snprintf(memory, sizeof(memory), "%.1f", (double)pages * (double)sysconf(_SC_PAGESIZE) / 1e9);
    if (json)
        printf("\"machine\": {");
    print_pair(json, "cores", cores, false);
    print_pair(json, "memory GB", memory, true);
    if (json)
        printf("}, ");
}

static void
print_options(bool json)
{
    llm_option_info info = {.struct_size = sizeof(info)};
    printf("%s", json ? "\"options\": [" : "\noptions\n");
    for (size_t i = 0; llm_get_option_info(i, &info) == LLM_SUCCESS && info.key != NULL; i++) {
        if (!json) {
            printf("  %-26s%-10s%s\n", info.key,
                   info.default_value[0] == '\0' ? "-" : info.default_value, info.help);
            continue;
        }
        printf("%s{", i == 0 ? "" : ", ");
        print_pair(true, "key", info.key, false);
        print_pair(true, "default", info.default_value, false);
        print_pair(true, "help", info.help, true);
        printf("}");
    }
    printf("%s", json ? "]" : "");
}

// ---- the link ----

static int
explain_failure(void)
{
    char text[1024];
    llm_last_error(text, sizeof(text));
    fprintf(stderr, "llm-datadist info: %s\n", text);
    return TOOL_FAILED;
}

static int
print_link(llm_datadist *dd, bool json)
{
    llm_link_info link = {.struct_size = sizeof(link)};
    uint64_t cluster_id;
    size_t num_links;
    char id[32];
    if (llm_list_links(dd, &cluster_id, 1, &num_links) != LLM_SUCCESS || num_links != 1 ||
        llm_get_link_info(dd, cluster_id, &link) != LLM_SUCCESS)
        return explain_failure();
    snprintf(id, sizeof(id), "%llu", (unsigned long long)cluster_id);
    printf("%s", json ? ", \"link\": {" : "\nlink\n");
    print_pair(json, json ? "cluster" : "  cluster", id, false);
    print_pair(json, json ? "transport" : "  transport", link.transport, false);
    print_pair(json, json ? "reason" : "  reason", link.reason, true);
    printf("%s", json ? "}" : "");
    return TOOL_OK;
}

static int
link_and_print(llm_datadist *dd, const struct request *request)
{
    llm_ip_info local = {.ip = "0.0.0.0"};
    llm_ip_info remote = {.ip = request->place.host, .port = request->place.port};
    llm_cluster_info cluster = {
        .struct_size = sizeof(cluster),
        .local_ip_infos = &local,
        .num_local_ip_infos = 1,
        .remote_ip_infos = &remote,
        .num_remote_ip_infos = 1,
    };
    if (llm_link_clusters(dd, &cluster, 1, NULL, NULL, 3000) != LLM_SUCCESS)
        return explain_failure();
    int result = print_link(dd, request->json);
    llm_list_links(dd, &cluster.remote_cluster_id, 1, &(size_t){0});
    llm_unlink_clusters(dd, &cluster, 1, NULL, NULL, 1000, 0);
    return result;
}

// The instance that links; NULL if nobody asks for a link.
static int
open_instance(const struct request *request, llm_datadist **ret_dd)
{
    *ret_dd = NULL;
    if (request->address == NULL)
        return TOOL_OK;
    // What fails is told by explain_failure.
    llm_set_log_level(LLM_LOG_OFF);
    // Version 2 links with whoever answers, whatever its cluster id.
    llm_option options[] = {
        {LLM_OPTION_DEVICE_ID, "0"},
        {LLM_OPTION_LOCAL_COMM_RES, ""},
        {LLM_OPTION_TRANSPORTS, request->transports != NULL ? request->transports : "auto"},
    };
    // The upper half keeps clear of the ids that people give.
    uint64_t cluster_id = UINT64_C(0xFFFFFFFF00000000) | (uint32_t)getpid();
    llm_status status = llm_create(cluster_id, LLM_ROLE_DECODER, ret_dd);
    if (status == LLM_SUCCESS)
        status = llm_initialize(*ret_dd, options, sizeof(options) / sizeof(options[0]));
    if (status == LLM_SUCCESS)
        return TOOL_OK;
    explain_failure();
    llm_destroy(*ret_dd);
    return status == LLM_PARAM_INVALID ? TOOL_USAGE : TOOL_FAILED;
}

// ---- the command line ----

static bool
split_address(struct request *request)
{
    const char *text = request->address;
    const char *digits;
    char *end;
    if (!lli_endpoint_split(text, text + strlen(text), &request->place, &digits) ||
        !isdigit((unsigned char)*digits))
        return false;
    unsigned long port = strtoul(digits, &end, 10);
    request->place.port = (uint16_t)port;
    return *end == '\0' && port > 0 && port <= UINT16_MAX;
}

static int
check(struct request *request)
{
    if (request->address == NULL && request->transports != NULL) {
        fprintf(stderr, "llm-datadist info: --transports is about a link: it needs --connect\n");
        return TOOL_USAGE;
    }
    if (request->address != NULL && !split_address(request)) {
        fprintf(stderr,
                "llm-datadist info: --connect is \"%s\", expected HOST:PORT, such as "
                "192.0.2.7:26000, with a port 1..65535\n",
                request->address);
        return TOOL_USAGE;
    }
    return TOOL_OK;
}

static int
parse(int argc, char **argv, struct request *request)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--help") == 0 || strcmp(argv[i], "-h") == 0) {
            request->help = true;
            return TOOL_OK;
        }
        if (strcmp(argv[i], "--json") == 0) {
            request->json = true;
        } else if (strcmp(argv[i], "--connect") == 0 && value != NULL) {
            request->address = value;
            i++;
        } else if (strcmp(argv[i], "--transports") == 0 && value != NULL) {
            request->transports = value;
            i++;
        } else {
            fprintf(stderr,
                    "llm-datadist info: \"%s\" is not an argument, or lacks its value; see "
                    "llm-datadist info --help\n",
                    argv[i]);
            return TOOL_USAGE;
        }
    }
    return check(request);
}

int
tool_info(int argc, char **argv)
{
    struct request request = {0};
    llm_datadist *dd;
    int result = parse(argc, argv, &request);
    if (result == TOOL_OK && request.help)
        print_help(stdout);
    if (result != TOOL_OK || request.help)
        return result;
    result = open_instance(&request, &dd);
    if (result != TOOL_OK)
        return result;
    if (request.json)
        printf("{");
    print_library(request.json);
    print_machine(request.json);
    print_options(request.json);
    if (dd != NULL)
        result = link_and_print(dd, &request);
    printf("%s", request.json ? "}\n" : "");
    llm_destroy(dd);
    return result;
}
