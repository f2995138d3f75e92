// The writer and the reader of each message stand side by side.
#include "transport/message.h"

#include "device/crc32c.h"

void
lli_message_header_write(uint8_t bytes[LLI_MESSAGE_HEADER_BYTES],
                         const struct lli_message_header *header)
{
    struct lli_writer w;
    lli_writer_init(&w, bytes, LLI_MESSAGE_HEADER_BYTES);
    lli_write_u32(&w, LLI_MESSAGE_MAGIC);
    lli_write_uint(&w, LLI_MESSAGE_VERSION, 1);
    lli_write_uint(&w, header->type, 1);
    lli_write_u16(&w, header->flags);
    lli_write_u32(&w, header->body_bytes);
    lli_write_u32(&w, 0);
    lli_write_u64(&w, header->transfer_id);
    lli_write_u64(&w, header->argument);
}

enum { FLAGS_AT = 6, CHECKSUM_AT = 12 };

static uint32_t
checksum_of(const uint8_t bytes[LLI_MESSAGE_HEADER_BYTES], const void *body, size_t body_bytes)
{
    uint8_t head[LLI_MESSAGE_HEADER_BYTES];
    memcpy(head, bytes, sizeof(head));
    memset(head + CHECKSUM_AT, 0, 4);
    return lli_crc32c(lli_crc32c(0, head, sizeof(head)), body, body_bytes);
}

void
lli_message_seal(uint8_t bytes[LLI_MESSAGE_HEADER_BYTES], const void *body, size_t body_bytes)
{
    struct lli_writer w;
    bytes[FLAGS_AT] |= LLI_FLAG_SEALED;
    lli_writer_init(&w, bytes + CHECKSUM_AT, 4);
    lli_write_u32(&w, checksum_of(bytes, body, body_bytes));
}

bool
lli_message_is_intact(const uint8_t bytes[LLI_MESSAGE_HEADER_BYTES], const void *body,
                      size_t body_bytes)
{
    struct lli_reader r;
    if ((bytes[FLAGS_AT] & LLI_FLAG_SEALED) == 0)
        return true;
    lli_reader_init(&r, bytes + CHECKSUM_AT, 4);
    return lli_read_u32(&r) == checksum_of(bytes, body, body_bytes);
}

bool
lli_message_has_magic(const uint8_t bytes[LLI_MESSAGE_HEADER_BYTES])
{
    struct lli_reader r;
    lli_reader_init(&r, bytes, LLI_MESSAGE_HEADER_BYTES);
    return lli_read_u32(&r) == LLI_MESSAGE_MAGIC;
}

const char *
lli_message_header_read(const uint8_t bytes[LLI_MESSAGE_HEADER_BYTES],
                        struct lli_message_header *ret_header)
{
    struct lli_reader r;
    if (!lli_message_has_magic(bytes))
        return "it doesn't speak this protocol";
    lli_reader_init(&r, bytes, LLI_MESSAGE_HEADER_BYTES);
    lli_read_u32(&r);
    ret_header->version = (uint8_t)lli_read_uint(&r, 1);
    ret_header->type = (uint8_t)lli_read_uint(&r, 1);
    if (ret_header->version != LLI_MESSAGE_VERSION && ret_header->type != LLI_HELLO)
        return "it speaks another version of the protocol";
    ret_header->flags = lli_read_u16(&r);
    ret_header->body_bytes = lli_read_u32(&r);
    lli_read_u32(&r);
    ret_header->transfer_id = lli_read_u64(&r);
    ret_header->argument = lli_read_u64(&r);
    return NULL;
}

static void
identity_write(struct lli_writer *w, const struct lli_identity *identity)
{
    lli_write_u64(w, identity->cluster_id);
    lli_write_u64(w, identity->incarnation);
    lli_write_u64(w, identity->process_token);
    lli_write_bytes(w, identity->boot_id, sizeof(identity->boot_id));
    lli_write_u32(w, identity->num_devices);
    lli_write_u32(w, identity->transports);
    lli_write_u32(w, identity->liveness_ms);
    lli_write_u32(w, identity->role);
    lli_write_u32(w, identity->checksum);
    lli_write_text(w, identity->unix_name);
}

static void
identity_read(struct lli_reader *r, struct lli_identity *ret_identity)
{
    ret_identity->cluster_id = lli_read_u64(r);
    ret_identity->incarnation = lli_read_u64(r);
    ret_identity->process_token = lli_read_u64(r);
    lli_read_bytes(r, ret_identity->boot_id, sizeof(ret_identity->boot_id));
    ret_identity->num_devices = lli_read_u32(r);
    ret_identity->transports = lli_read_u32(r);
    ret_identity->liveness_ms = lli_read_u32(r);
    ret_identity->role = lli_read_u32(r);
    ret_identity->checksum = lli_read_u32(r);
    lli_read_text(r, ret_identity->unix_name, sizeof(ret_identity->unix_name));
}

void
lli_hello_write(struct lli_writer *w, const struct lli_hello *hello)
{
    lli_write_u16(w, LLI_MESSAGE_VERSION); // lowest version spoken
    lli_write_u16(w, LLI_MESSAGE_VERSION); // highest
    lli_write_u64(w, hello->link_token);
    lli_write_u64(w, hello->expected_cluster_id);
    lli_write_u32(w, hello->any_cluster);
    lli_write_u32(w, hello->purpose);
    lli_write_u32(w, hello->device_index);
    lli_write_u32(w, hello->num_connections);
    identity_write(w, &hello->from);
    lli_write_u16(w, 0); // bytes of authentication that follow: none yet
}

bool
lli_hello_read(struct lli_reader *r, struct lli_hello *ret_hello)
{
    ret_hello->lowest_version = lli_read_u16(r);
    ret_hello->highest_version = lli_read_u16(r);
    if (!r->failed && !lli_hello_has_our_version(ret_hello))
        return true;
    ret_hello->link_token = lli_read_u64(r);
    ret_hello->expected_cluster_id = lli_read_u64(r);
    ret_hello->any_cluster = lli_read_u32(r);
    ret_hello->purpose = lli_read_u32(r);
    ret_hello->device_index = lli_read_u32(r);
    ret_hello->num_connections = lli_read_u32(r);
    identity_read(r, &ret_hello->from);
    return !r->failed;
}

bool
lli_hello_has_our_version(const struct lli_hello *hello)
{
    return hello->lowest_version <= LLI_MESSAGE_VERSION &&
           hello->highest_version >= LLI_MESSAGE_VERSION;
}

void
lli_hello_reply_write(struct lli_writer *w, const struct lli_hello_reply *reply)
{
    lli_write_u32(w, reply->status);
    lli_write_text(w, reply->text);
    identity_write(w, &reply->from);
    lli_write_u16(w, 0); // bytes of authentication that follow: none yet
}

bool
lli_hello_reply_read(struct lli_reader *r, struct lli_hello_reply *ret_reply)
{
    ret_reply->status = lli_read_u32(r);
    lli_read_text(r, ret_reply->text, sizeof(ret_reply->text));
    identity_read(r, &ret_reply->from);
    return !r->failed;
}

void
lli_choose_write(struct lli_writer *w, const struct lli_choose *choose)
{
    lli_write_u32(w, choose->transport);
    lli_write_u32(w, choose->can_read);
    lli_write_text(w, choose->reason);
}

bool
lli_choose_read(struct lli_reader *r, struct lli_choose *ret_choose)
{
    ret_choose->transport = lli_read_u32(r);
    ret_choose->can_read = lli_read_u32(r);
    lli_read_text(r, ret_choose->reason, sizeof(ret_choose->reason));
    return !r->failed;
}

void
lli_outcome_write(struct lli_writer *w, const struct lli_outcome *outcome)
{
    lli_write_u32(w, outcome->status);
    lli_write_text(w, outcome->text);
}

bool
lli_outcome_read(struct lli_reader *r, struct lli_outcome *ret_outcome)
{
    ret_outcome->status = lli_read_u32(r);
    lli_read_text(r, ret_outcome->text, sizeof(ret_outcome->text));
    // Whoever polls would take the end for none, and poll for ever.
    if (ret_outcome->status == LLM_TRANSFER_PENDING)
        ret_outcome->status = LLM_FAILED;
    return !r->failed;
}

// Behind all the rest: the data type and 1, and the dimensions.
static void
shape_write(struct lli_writer *w, const struct lli_geometry *geometry)
{
    lli_write_u32(w, (uint32_t)geometry->data_type + 1);
    lli_write_u32(w, geometry->num_dims);
    for (uint32_t i = 0; i < geometry->num_dims; i++)
        lli_write_u64(w, (uint64_t)geometry->dims[i]);
}

// Peers of before it was sent don't have it.
static void
shape_read(struct lli_reader *r, struct lli_geometry *geometry)
{
    bool is_there = lli_read_left(r) > 0;
    uint32_t type = is_there ? lli_read_u32(r) : 0;
    geometry->data_type = type == 0 ? LLM_DT_UNDEFINED : (int32_t)(type - 1);
    geometry->num_dims = is_there ? lli_read_u32(r) : 0;
    if (geometry->num_dims > LLI_NUM_DIMS_MAX) {
        geometry->num_dims = 0;
        r->failed = true;
    }
    for (uint32_t i = 0; i < geometry->num_dims; i++)
        geometry->dims[i] = (int64_t)lli_read_u64(r);
}

enum { ANSWER_REGISTERED = 1, ANSWER_SLOT_HAS_REQUEST = 2 };

void
lli_answer_write(struct lli_writer *w, const struct lli_answer *answer)
{
    lli_write_u64(w, (uint64_t)answer->cache_id);
    lli_write_u64(w, answer->slot);
    lli_write_u32(w, answer->geometry.placement);
    lli_write_u32(w, answer->geometry.num_tensors);
    lli_write_u32(w, (answer->registered ? ANSWER_REGISTERED : 0u) |
                         (answer->slot_has_request ? ANSWER_SLOT_HAS_REQUEST : 0u));
    lli_write_u64(w, answer->geometry.num_slots);
    lli_write_u64(w, answer->geometry.stride);
    lli_write_u64(w, answer->geometry.tensor_bytes);
    lli_write_u64(w, answer->generation);
    lli_write_u64(w, answer->bytes_arrived);
    lli_write_u64(w, answer->key_stamp);
    shape_write(w, &answer->geometry);
}

bool
lli_answer_read(struct lli_reader *r, struct lli_answer *ret_answer)
{
    ret_answer->cache_id = (int64_t)lli_read_u64(r);
    ret_answer->slot = lli_read_u64(r);
    ret_answer->geometry.placement = lli_read_u32(r);
    ret_answer->geometry.num_tensors = lli_read_u32(r);
    uint32_t flags = lli_read_u32(r);
    ret_answer->registered = (flags & ANSWER_REGISTERED) != 0;
    ret_answer->slot_has_request = (flags & ANSWER_SLOT_HAS_REQUEST) != 0;
    ret_answer->geometry.num_slots = lli_read_u64(r);
    ret_answer->geometry.stride = lli_read_u64(r);
    ret_answer->geometry.tensor_bytes = lli_read_u64(r);
    ret_answer->generation = lli_read_u64(r);
    ret_answer->bytes_arrived = lli_read_u64(r);
    ret_answer->key_stamp = lli_read_u64(r);
    shape_read(r, &ret_answer->geometry);
    return !r->failed;
}
