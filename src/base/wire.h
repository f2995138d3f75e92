// A bounded little-endian writer and reader.  Both have a sticky error: write or read on, and ask
// once at the end.  Bytes from a peer pass through the reader and nowhere else.
#ifndef LLI_WIRE_H
#define LLI_WIRE_H

#include "base/base.h"
#include "base/log.h"

struct lli_writer {
    uint8_t *bytes;
    size_t capacity;
    size_t size;
    bool failed;
};

struct lli_reader {
    const uint8_t *bytes;
    size_t size;
    size_t position;
    bool failed;
};

static inline void
lli_writer_init(struct lli_writer *w, void *bytes, size_t capacity)
{
    *w = (struct lli_writer){.bytes = bytes, .capacity = capacity};
}

static inline void
lli_write_uint(struct lli_writer *w, uint64_t value, size_t num_bytes)
{
    if (w->capacity - w->size < num_bytes) {
        w->failed = true;
        return;
    }
    for (size_t i = 0; i < num_bytes; i++)
        w->bytes[w->size++] = (uint8_t)(value >> (8 * i));
}

static inline void
lli_write_u16(struct lli_writer *w, uint16_t value)
{
    lli_write_uint(w, value, 2);
}

static inline void
lli_write_u32(struct lli_writer *w, uint32_t value)
{
    lli_write_uint(w, value, 4);
}

static inline void
lli_write_u64(struct lli_writer *w, uint64_t value)
{
    lli_write_uint(w, value, 8);
}

static inline void
lli_write_bytes(struct lli_writer *w, const void *bytes, size_t num_bytes)
{
    if (w->capacity - w->size < num_bytes) {
        w->failed = true;
        return;
    }
    if (num_bytes > 0)
        memcpy(w->bytes + w->size, bytes, num_bytes);
    w->size += num_bytes;
}

// A text travels as its length in 16 bits and its bytes.
static inline void
lli_write_text(struct lli_writer *w, const char *text)
{
    size_t length = strlen(text);
    if (length > UINT16_MAX) {
        w->failed = true;
        return;
    }
    lli_write_u16(w, (uint16_t)length);
    lli_write_bytes(w, text, length);
}

static inline void
lli_reader_init(struct lli_reader *r, const void *bytes, size_t size)
{
    *r = (struct lli_reader){.bytes = bytes, .size = size};
}

static inline uint64_t
lli_read_uint(struct lli_reader *r, size_t num_bytes)
{
    uint64_t value = 0;
    if (r->size - r->position < num_bytes) {
        r->failed = true;
        return 0;
    }
    for (size_t i = 0; i < num_bytes; i++)
        value |= (uint64_t)r->bytes[r->position++] << (8 * i);
    return value;
}

static inline uint16_t
lli_read_u16(struct lli_reader *r)
{
    return (uint16_t)lli_read_uint(r, 2);
}

static inline uint32_t
lli_read_u32(struct lli_reader *r)
{
    return (uint32_t)lli_read_uint(r, 4);
}

static inline uint64_t
lli_read_u64(struct lli_reader *r)
{
    return lli_read_uint(r, 8);
}

static inline void
lli_read_bytes(struct lli_reader *r, void *bytes, size_t num_bytes)
{
    if (r->size - r->position < num_bytes) {
        r->failed = true;
        memset(bytes, 0, num_bytes);
        return;
    }
    memcpy(bytes, r->bytes + r->position, num_bytes);
    r->position += num_bytes;
}

// Reads a text into `text`, always closed with a zero, and cleaned: it will be shown, or returned to
// the application.  A text that doesn't fit is an error.
static inline void
lli_read_text(struct lli_reader *r, char *text, size_t text_size)
{
    size_t length = lli_read_u16(r);
    text[0] = '\0';
    if (r->failed || length >= text_size || r->size - r->position < length) {
        r->failed = true;
        return;
    }
    memcpy(text, r->bytes + r->position, length);
    text[length] = '\0';
    lli_clean_text(text);
    r->position += length;
}

static inline size_t
lli_read_left(const struct lli_reader *r)
{
    return r->size - r->position;
}

#endif
