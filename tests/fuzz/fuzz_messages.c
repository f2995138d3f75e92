// Whatever a peer sends gives a message within its bounds, or none; and a request that passes the
// check of a cache leads to places inside that cache and nowhere else.
//
// Input: a letter that says what follows: H header, I hello, R hello reply, C choose, O outcome, A
// answer; P or U a pull or push (what QUERY and DONE say reads as a pull), with a digit for the cache that it's checked against.
#include "base/log.h"
#include "fuzz/fuzz.h"
#include "transfer/request.h"
#include "transport/message.h"

// What is read is written, and read again: the same.
#define SAME_AGAIN(kind, value)                                                                    \
    do {                                                                                           \
        uint8_t bytes_[LLI_HELLO_BODY_BYTES_MAX];                                                  \
        struct lli_writer w_;                                                                      \
        struct lli_reader r_;                                                                      \
        struct lli_##kind again_;                                                                  \
        memset(&again_, 0, sizeof(again_));                                                        \
        lli_writer_init(&w_, bytes_, sizeof(bytes_));                                              \
        lli_##kind##_write(&w_, &(value));                                                         \
        MUST(!w_.failed);                                                                          \
        lli_reader_init(&r_, bytes_, w_.size);                                                     \
        MUST(lli_##kind##_read(&r_, &again_));                                                     \
    } while (0)

static void
try_header(const uint8_t *data, size_t size)
{
    uint8_t bytes[LLI_MESSAGE_HEADER_BYTES] = {0};
    struct lli_message_header header;
    if (size > 0)
        memcpy(bytes, data, lli_min(size, sizeof(bytes)));
    const char *wrong = lli_message_header_read(bytes, &header);
    MUST((wrong == NULL) == (memcmp(bytes, "LDD1\x01", 5) == 0));
}

static bool
is_closed(const char *text, size_t size)
{
    return memchr(text, '\0', size) != NULL;
}

static void
try_message(char kind, const uint8_t *data, size_t size)
{
    struct lli_reader r;
    struct lli_hello hello;
    struct lli_hello_reply reply;
    struct lli_choose choose;
    struct lli_outcome outcome;
    struct lli_answer answer;
    memset(&hello, 0, sizeof(hello));
    memset(&reply, 0, sizeof(reply));
    memset(&choose, 0, sizeof(choose));
    lli_reader_init(&r, data, size);
    if (kind == 'I' && lli_hello_read(&r, &hello)) {
        MUST(is_closed(hello.from.unix_name, sizeof(hello.from.unix_name)));
        SAME_AGAIN(hello, hello);
    } else if (kind == 'R' && lli_hello_reply_read(&r, &reply)) {
        MUST(is_closed(reply.text, sizeof(reply.text)));
        SAME_AGAIN(hello_reply, reply);
    } else if (kind == 'C' && lli_choose_read(&r, &choose)) {
        MUST(is_closed(choose.reason, sizeof(choose.reason)));
        SAME_AGAIN(choose, choose);
    } else if (kind == 'O' && lli_outcome_read(&r, &outcome)) {
        MUST(is_closed(outcome.text, sizeof(outcome.text)));
        SAME_AGAIN(outcome, outcome);
    } else if (kind == 'A' && lli_answer_read(&r, &answer)) {
        MUST(answer.geometry.num_dims <= LLI_NUM_DIMS_MAX);
        (void)lli_geometry_shape_is_sound(&answer.geometry);
        SAME_AGAIN(answer, answer);
    }
    MUST(r.position <= r.size);
}

static const struct lli_geometry geometries[] = {
    {.num_tensors = 4, .num_slots = 8, .stride = 16, .tensor_bytes = 128},
    {.num_tensors = 1, .num_slots = 1, .stride = 1, .tensor_bytes = 1},
    {.num_tensors = 3, .num_slots = 5, .stride = 7, .tensor_bytes = 36}, // a byte left over
    {.num_tensors = 2, .num_slots = 4, .stride = 0, .tensor_bytes = 1},  // less than a byte each
    {.num_tensors = UINT32_MAX,
     .num_slots = UINT64_C(1) << 40,
     .stride = 1 << 20,
     .tensor_bytes = UINT64_C(1) << 60},
};

static void
check_place(const struct lli_plan *plan, const struct lli_geometry *geometry, uint64_t position)
{
    struct lli_place place = lli_plan_locate(plan, position);
    MUST(place.tensor < plan->num_tensors);
    MUST(place.run < plan->num_runs);
    MUST(place.offset < plan->runs[place.run].bytes);
    MUST(plan->runs[place.run].src_offset + place.offset < geometry->tensor_bytes);
    MUST(plan->runs[place.run].dst_offset + place.offset < geometry->tensor_bytes);
    MUST(place.tensor * plan->tensor_bytes + plan->runs[place.run].position + place.offset ==
         position);
}

static void
check_plan(const struct lli_plan *plan, const struct lli_geometry *geometry)
{
    MUST(plan->total_bytes == plan->num_tensors * plan->tensor_bytes);
    for (size_t i = 0; i < plan->num_runs; i++) {
        const struct lli_run *run = &plan->runs[i];
        MUST(run->src_offset <= geometry->tensor_bytes);
        MUST(run->bytes <= geometry->tensor_bytes - run->src_offset);
    }
    if (plan->total_bytes == 0)
        return;
    // All positions of a small one; of a large one the ends, and some between.
    uint64_t step = plan->total_bytes / 2048 + 1;
    for (uint64_t position = 0; position < plan->total_bytes; position += step) {
        check_place(plan, geometry, position);
        if (plan->total_bytes - position <= step)
            break;
    }
    check_place(plan, geometry, plan->total_bytes - 1);
}

static void
check_written_again(const struct lli_request *request)
{
    size_t bytes_max = lli_request_bytes(request);
    uint8_t *bytes = malloc(bytes_max);
    struct lli_writer w;
    struct lli_reader r;
    struct lli_request again;
    MUST(bytes != NULL);
    lli_writer_init(&w, bytes, bytes_max);
    lli_request_write(&w, request);
    MUST(!w.failed);
    lli_reader_init(&r, bytes, w.size);
    MUST(lli_request_read(&r, request->push, &again));
    MUST(again.num_runs == request->num_runs && again.num_source_runs == request->num_source_runs);
    lli_request_fini(&again);
    free(bytes);
}

// Whatever it names can be said, and lies in a lease or doesn't.
static void
check_names(const struct lli_request *request)
{
    char text[96];
    struct lli_lease_range range = {.first_slot = 2, .num_slots = 3};
    lli_request_describe(request, text, sizeof(text));
    MUST(is_closed(text, sizeof(text)));
    if (request->kind == LLI_REQUEST_SLOT && lli_request_is_within(request, &range))
        MUST(request->slot >= 2 && request->slot < 5);
    for (size_t i = 0; i < request->num_runs && lli_request_is_within(request, &range); i++)
        MUST(request->runs[i].first >= 2 && request->runs[i].first < 5 &&
             request->runs[i].count <= 5 - request->runs[i].first);
    if (request->by == LLI_BY_ADDRESS)
        MUST(request->num_tensors > 0 && request->addresses != NULL);
}

static void
try_request(bool push, const uint8_t *data, size_t size)
{
    struct lli_reader r;
    struct lli_request request;
    struct lli_plan plan;
    char why[LLI_REASON_BYTES] = "";
    if (size == 0)
        return;
    const struct lli_geometry *geometry = &geometries[data[0] % LLI_COUNT(geometries)];
    lli_reader_init(&r, data + 1, size - 1);
    if (!lli_request_read(&r, push, &request))
        return;
    check_written_again(&request);
    check_names(&request);
    llm_status status = lli_request_check(&request, geometry, why, sizeof(why));
    MUST((status == LLM_SUCCESS) == (why[0] == '\0'));
    if (status == LLM_SUCCESS &&
        lli_request_plan(&request, geometry->stride, 1 + data[0] % 3, &plan) == LLM_SUCCESS) {
        check_plan(&plan, geometry);
        lli_plan_fini(&plan);
    }
    lli_request_fini(&request);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    llm_set_log_level(LLM_LOG_OFF);
    if (size == 0)
        return 0;
    switch (data[0]) {
    case 'H':
        try_header(data + 1, size - 1);
        break;
    case 'P':
    case 'U':
        try_request(data[0] == 'U', data + 1, size - 1);
        break;
    default:
        try_message((char)data[0], data + 1, size - 1);
    }
    return 0;
}
