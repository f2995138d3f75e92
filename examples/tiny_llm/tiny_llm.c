// tiny_llm.c - tiny_llm.h in plain C.
//
// Written to give the same bits everywhere: sums run in a fixed order, exp and the rotary angles are
// computed in double and rounded, and the build turns off fused multiply-add (-ffp-contract=off).
#include "tiny_llm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADER_BYTES = 64, FORMAT_VERSION = 1, HEADER_FIELDS = 14 };
static const char MAGIC[8] = "TINYLLM";
static const float NORM_EPSILON = 1e-5f;

typedef struct layer_weights {
    const float *attention_norm; // [dim]
    const float *query;          // [heads * head_dim][dim]
    const float *key;            // [kv_heads * head_dim][dim]
    const float *value;          // [kv_heads * head_dim][dim]
    const float *output;         // [dim][heads * head_dim]
    const float *mlp_norm;       // [dim]
    const float *gate;           // [hidden][dim]
    const float *up;             // [hidden][dim]
    const float *down;           // [dim][hidden]
} layer_weights;

struct tiny_llm {
    tiny_dims dims;
    uint32_t fingerprint;
    float *weights; // all of them; the pointers below lead into it
    const float *embedding;
    layer_weights *layers;
    const float *final_norm;
    float *rope;    // [context][head_dim / 2] pairs of cosine and sine
    float *work;    // one allocation for the buffers below
    float *stream;  // [context][dim]: one row per token of a prefill
    float *normed;  // [dim]
    float *queries; // [heads * head_dim]
    float *mixed;   // [heads * head_dim]
    float *gated;   // [hidden]
    float *raised;  // [hidden]
    float *delta;   // [dim]
    float *scores;  // [context]
    float *logits;  // [vocab]
};

// ---- the weights file ----------------------------------------------------------------------

typedef struct header {
    tiny_dims dims;
    uint32_t bits;
    uint32_t num_weights;
    uint32_t checksum;
} header;

static uint32_t
read_u32(const uint8_t *p)
{
    return p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint32_t
fnv1a(const uint8_t *bytes, size_t size)
{
    uint32_t hash = 0x811C9DC5u;
    for (size_t i = 0; i < size; i++)
        hash = (hash ^ bytes[i]) * 0x01000193u;
    return hash;
}

static float
half_to_float(uint32_t half)
{
    uint32_t sign = (half & 0x8000u) << 16, exponent = half >> 10 & 31, fraction = half & 0x3FFu;
    if (exponent == 0) { // zero and the subnormals
        float value = ldexpf((float)fraction, -24);
        return sign ? -value : value;
    }
    uint32_t bits = exponent == 31 ? 0x7F800000u : (exponent + 112) << 23;
    bits |= sign | fraction << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint64_t
weights_per_layer(const tiny_dims *d)
{
    uint64_t width = (uint64_t)d->heads * d->head_dim,
             kv_width = (uint64_t)d->kv_heads * d->head_dim;
    return 2 * d->dim + 2 * width * d->dim + 2 * kv_width * d->dim + 3ull * d->hidden * d->dim;
}

static uint64_t
count_weights(const tiny_dims *d)
{
    return (uint64_t)d->vocab * d->dim + d->layers * weights_per_layer(d) + d->dim;
}

static const char *
check_dims(const tiny_dims *d)
{
    // The limits keep every product below far away from overflow.
    if (d->dim < 1 || d->dim > 4096 || d->hidden < 1 || d->hidden > 16384)
        return "dim must be 1..4096 and hidden 1..16384";
    if (d->layers < 1 || d->layers > 128)
        return "layers must be 1..128";
    if (d->heads < 1 || d->heads > 128 || d->kv_heads < 1 || d->heads % d->kv_heads != 0)
        return "heads must be 1..128 and a multiple of kv_heads";
    if (d->head_dim < 2 || d->head_dim > 256 || d->head_dim % 2 != 0)
        return "head_dim must be even, 2..256";
    if (d->vocab != 256)
        return "vocab must be 256";
    if (d->context < 1 || d->context > 65536 || d->rope_theta < 1)
        return "context must be 1..65536 and rope_theta at least 1";
    return NULL;
}

static const char *
parse_header(const uint8_t *bytes, size_t size, header *h)
{
    if (size < HEADER_BYTES || memcmp(bytes, MAGIC, sizeof MAGIC) != 0)
        return "it doesn't begin with the magic TINYLLM";
    uint32_t f[HEADER_FIELDS];
    for (int i = 0; i < HEADER_FIELDS; i++)
        f[i] = read_u32(bytes + sizeof MAGIC + 4 * i);
    if (f[0] != FORMAT_VERSION || f[1] != HEADER_BYTES)
        return "its version isn't 1, or its header hasn't 64 bytes";
    h->dims = (tiny_dims){f[2], f[3], f[4], f[5], f[6], f[7], f[8], f[9], f[10]};
    h->bits = f[11];
    h->num_weights = f[12];
    h->checksum = f[13];
    return check_dims(&h->dims);
}

static const char *
check_payload(const header *h, const uint8_t *bytes, size_t size)
{
    uint64_t expected = count_weights(&h->dims);
    if (h->bits != 16 || h->num_weights != expected)
        return "the number of weights isn't what its dims need, or they aren't fp16";
    if (size != HEADER_BYTES + 2 * expected)
        return "its size isn't what its header says";
    if (fnv1a(bytes + HEADER_BYTES, size - HEADER_BYTES) != h->checksum)
        return "its checksum is wrong";
    return NULL;
}

// ---- a model ------------------------------------------------------------------------------

static const float *
take(const float **at, size_t count)
{
    const float *taken = *at;
    *at += count;
    return taken;
}

static void
point_into_weights(tiny_llm *m)
{
    const tiny_dims *d = &m->dims;
    size_t width = (size_t)d->heads * d->head_dim, kv_width = (size_t)d->kv_heads * d->head_dim;
    const float *at = m->weights;
    m->embedding = take(&at, (size_t)d->vocab * d->dim);
    for (uint32_t i = 0; i < d->layers; i++) {
        layer_weights *w = &m->layers[i];
        w->attention_norm = take(&at, d->dim);
        w->query = take(&at, width * d->dim);
        w->key = take(&at, kv_width * d->dim);
        w->value = take(&at, kv_width * d->dim);
        w->output = take(&at, width * d->dim);
        w->mlp_norm = take(&at, d->dim);
        w->gate = take(&at, (size_t)d->hidden * d->dim);
        w->up = take(&at, (size_t)d->hidden * d->dim);
        w->down = take(&at, (size_t)d->hidden * d->dim);
    }
    m->final_norm = take(&at, d->dim);
}

static void
fill_rope(tiny_llm *m)
{
    uint32_t half = m->dims.head_dim / 2;
    float *at = m->rope;
    for (uint32_t position = 0; position < m->dims.context; position++) {
        for (uint32_t i = 0; i < half; i++) {
            double turn = pow(m->dims.rope_theta, -2.0 * i / m->dims.head_dim);
            *at++ = (float)cos(position * turn);
            *at++ = (float)sin(position * turn);
        }
    }
}

static void
share_out_work(tiny_llm *m)
{
    const tiny_dims *d = &m->dims;
    size_t width = (size_t)d->heads * d->head_dim;
    float *at = m->work;
    m->stream = at;
    m->normed = m->stream + (size_t)d->context * d->dim;
    m->queries = m->normed + d->dim;
    m->mixed = m->queries + width;
    m->gated = m->mixed + width;
    m->raised = m->gated + d->hidden;
    m->delta = m->raised + d->hidden;
    m->scores = m->delta + d->dim;
    m->logits = m->scores + d->context;
}

static size_t
work_floats(const tiny_dims *d)
{
    return (size_t)d->context * d->dim + 2 * d->dim + 2 * (size_t)d->heads * d->head_dim +
           2 * (size_t)d->hidden + d->context + d->vocab;
}

static tiny_llm *
new_model(const header *h)
{
    const tiny_dims *d = &h->dims;
    tiny_llm *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    m->dims = *d;
    m->fingerprint = h->checksum;
    m->weights = calloc(h->num_weights, sizeof(float));
    m->layers = calloc(d->layers, sizeof *m->layers);
    m->rope = calloc((size_t)d->context * d->head_dim, sizeof(float));
    m->work = calloc(work_floats(d), sizeof(float));
    if (!m->weights || !m->layers || !m->rope || !m->work) {
        tiny_free(m);
        return NULL;
    }
    point_into_weights(m);
    share_out_work(m);
    fill_rope(m);
    return m;
}

tiny_llm *
tiny_load(const void *bytes, size_t size, char *error, size_t error_size)
{
    header h;
    const char *wrong = parse_header(bytes, size, &h);
    if (!wrong)
        wrong = check_payload(&h, bytes, size);
    if (wrong) {
        snprintf(error, error_size, "not a weights file for tiny_llm: %s", wrong);
        return NULL;
    }
    tiny_llm *m = new_model(&h);
    if (!m) {
        snprintf(error, error_size, "out of memory for %u weights", (unsigned)h.num_weights);
        return NULL;
    }
    const uint8_t *halves = (const uint8_t *)bytes + HEADER_BYTES;
    for (size_t i = 0; i < h.num_weights; i++)
        m->weights[i] = half_to_float(halves[2 * i] | (uint32_t)halves[2 * i + 1] << 8);
    return m;
}

void
tiny_free(tiny_llm *m)
{
    if (!m)
        return;
    free(m->work);
    free(m->rope);
    free(m->layers);
    free(m->weights);
    free(m);
}

const tiny_dims *
tiny_get_dims(const tiny_llm *m)
{
    return &m->dims;
}

uint32_t
tiny_fingerprint(const tiny_llm *m)
{
    return m->fingerprint;
}

static size_t
kv_width_of(const tiny_llm *m)
{
    return (size_t)m->dims.kv_heads * m->dims.head_dim;
}

size_t
tiny_block_bytes(const tiny_llm *m)
{
    return TINY_BLOCK_TOKENS * kv_width_of(m) * sizeof(float);
}

size_t
tiny_num_tensors(const tiny_llm *m)
{
    return 2 * (size_t)m->dims.layers;
}

const float *
tiny_logits(const tiny_llm *m)
{
    return m->logits;
}

// ---- arithmetic ---------------------------------------------------------------------------

// Eight running sums: an order that is fixed, and that the compiler may still do side by side.
static float
dot(const float *a, const float *b, size_t n)
{
    float sum[8] = {0};
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (size_t j = 0; j < 8; j++)
            sum[j] += a[i + j] * b[i + j];
    for (; i < n; i++)
        sum[0] += a[i] * b[i];
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

// out[row] = matrix[row] . x
static void
multiply(float *out, const float *matrix, const float *x, size_t rows, size_t columns)
{
    for (size_t row = 0; row < rows; row++)
        out[row] = dot(matrix + row * columns, x, columns);
}

static void
add_to(float *x, const float *delta, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] += delta[i];
}

static void
rms_norm(float *out, const float *x, const float *weight, size_t n)
{
    float scale = 1.0f / sqrtf(dot(x, x, n) / (float)n + NORM_EPSILON);
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

static float
exp_of(float x)
{
    return (float)exp((double)x);
}

// Turns `heads` vectors to their position, pair by pair.
static void
rotate(const tiny_llm *m, float *x, size_t heads, size_t position)
{
    size_t half = m->dims.head_dim / 2;
    for (size_t head = 0; head < heads; head++) {
        const float *turn = m->rope + position * m->dims.head_dim;
        for (size_t i = 0; i < half; i++, x += 2, turn += 2) {
            float even = x[0], odd = x[1];
            x[0] = even * turn[0] - odd * turn[1];
            x[1] = even * turn[1] + odd * turn[0];
        }
    }
}

// ---- one token in one layer ---------------------------------------------------------------

// Where a token's row of K (which = 0) or V (1) lives: the block table at work.
static float *
kv_row(const tiny_llm *m, const tiny_kv *kv, uint32_t layer, int which, size_t position)
{
    float *tensor = (float *)kv->tensors[2 * layer + which]; // NOLINT: the address of a tensor
    size_t slot =
        kv->blocks[position / TINY_BLOCK_TOKENS] * TINY_BLOCK_TOKENS + position % TINY_BLOCK_TOKENS;
    return tensor + slot * kv_width_of(m);
}

static void
softmax(float *x, size_t n)
{
    float most = x[0], sum = 0;
    for (size_t i = 1; i < n; i++)
        most = x[i] > most ? x[i] : most;
    for (size_t i = 0; i < n; i++)
        sum += x[i] = exp_of(x[i] - most);
    for (size_t i = 0; i < n; i++)
        x[i] /= sum;
}

// One query head over positions 0 ... position.
static void
attend_head(tiny_llm *m, const tiny_kv *kv, uint32_t layer, uint32_t head, size_t position)
{
    size_t n = m->dims.head_dim;
    size_t offset = head / (m->dims.heads / m->dims.kv_heads) * n;
    const float *query = m->queries + head * n;
    float scale = 1.0f / sqrtf((float)n), *out = m->mixed + head * n;
    for (size_t t = 0; t <= position; t++)
        m->scores[t] = scale * dot(query, kv_row(m, kv, layer, 0, t) + offset, n);
    softmax(m->scores, position + 1);
    memset(out, 0, n * sizeof *out);
    for (size_t t = 0; t <= position; t++) {
        const float *value = kv_row(m, kv, layer, 1, t) + offset;
        for (size_t i = 0; i < n; i++)
            out[i] += m->scores[t] * value[i];
    }
}

static void
attention(tiny_llm *m, const tiny_kv *kv, uint32_t layer, float *x, size_t position)
{
    const tiny_dims *d = &m->dims;
    const layer_weights *w = &m->layers[layer];
    size_t width = (size_t)d->heads * d->head_dim, kv_width = kv_width_of(m);
    float *key = kv_row(m, kv, layer, 0, position);
    rms_norm(m->normed, x, w->attention_norm, d->dim);
    multiply(m->queries, w->query, m->normed, width, d->dim);
    multiply(key, w->key, m->normed, kv_width, d->dim);
    multiply(kv_row(m, kv, layer, 1, position), w->value, m->normed, kv_width, d->dim);
    rotate(m, m->queries, d->heads, position);
    rotate(m, key, d->kv_heads, position);
    for (uint32_t head = 0; head < d->heads; head++)
        attend_head(m, kv, layer, head, position);
    multiply(m->delta, w->output, m->mixed, d->dim, width);
    add_to(x, m->delta, d->dim);
}

static void
mlp(tiny_llm *m, uint32_t layer, float *x)
{
    const tiny_dims *d = &m->dims;
    const layer_weights *w = &m->layers[layer];
    rms_norm(m->normed, x, w->mlp_norm, d->dim);
    multiply(m->gated, w->gate, m->normed, d->hidden, d->dim);
    multiply(m->raised, w->up, m->normed, d->hidden, d->dim);
    for (uint32_t i = 0; i < d->hidden; i++)
        m->gated[i] = m->gated[i] / (1.0f + exp_of(-m->gated[i])) * m->raised[i];
    multiply(m->delta, w->down, m->gated, d->dim, d->hidden);
    add_to(x, m->delta, d->dim);
}

// ---- sequences ----------------------------------------------------------------------------

static const float *
embedding_of(const tiny_llm *m, uint8_t token)
{
    return m->embedding + (size_t)token * m->dims.dim;
}

static void
finish(tiny_llm *m, const float *x)
{
    rms_norm(m->normed, x, m->final_norm, m->dims.dim);
    multiply(m->logits, m->embedding, m->normed, m->dims.vocab, m->dims.dim);
}

static int
fits(const tiny_llm *m, const tiny_kv *kv, size_t num_tokens)
{
    return num_tokens > 0 && num_tokens <= m->dims.context &&
           (num_tokens - 1) / TINY_BLOCK_TOKENS < kv->num_blocks;
}

int
tiny_prefill(tiny_llm *m, const tiny_kv *kv, const uint8_t *tokens, size_t num_tokens,
             tiny_layer_done done, void *arg)
{
    size_t dim = m->dims.dim;
    if (!fits(m, kv, num_tokens))
        return -1;
    for (size_t i = 0; i < num_tokens; i++)
        memcpy(m->stream + i * dim, embedding_of(m, tokens[i]), dim * sizeof(float));
    for (uint32_t layer = 0; layer < m->dims.layers; layer++) {
        for (size_t i = 0; i < num_tokens; i++) {
            attention(m, kv, layer, m->stream + i * dim, i);
            mlp(m, layer, m->stream + i * dim);
        }
        int stop = done ? done(arg, layer) : 0;
        if (stop)
            return stop;
    }
    finish(m, m->stream + (num_tokens - 1) * dim);
    return 0;
}

int
tiny_decode(tiny_llm *m, const tiny_kv *kv, uint8_t token, size_t position)
{
    if (position >= m->dims.context || !fits(m, kv, position + 1))
        return -1;
    float *x = m->stream;
    memcpy(x, embedding_of(m, token), m->dims.dim * sizeof(float));
    for (uint32_t layer = 0; layer < m->dims.layers; layer++) {
        attention(m, kv, layer, x, position);
        mlp(m, layer, x);
    }
    finish(m, x);
    return 0;
}

// ---- sampling -----------------------------------------------------------------------------

// A number in [0, 1) from two (splitmix64's mixing of seed and position).
static double
random_unit(uint64_t seed, uint64_t position)
{
    uint64_t z = seed * 0xD1342543DE82EF95u + (position + 1) * 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    z ^= z >> 31;
    return (double)(z >> 11) * 0x1p-53;
}

// Puts the k likeliest tokens first, likeliest first; of equals the smaller token.
static void
sort_likeliest(const float *logits, uint8_t *order, uint32_t k)
{
    for (uint32_t i = 0; i < 256; i++)
        order[i] = (uint8_t)i;
    for (uint32_t i = 0; i < k; i++) {
        uint32_t best = i;
        for (uint32_t j = i + 1; j < 256; j++) {
            float a = logits[order[j]], b = logits[order[best]];
            if (a > b || (a == b && order[j] < order[best])) // NOLINT: exact ties are meant
                best = j;
        }
        uint8_t swapped = order[i];
        order[i] = order[best];
        order[best] = swapped;
    }
}

uint8_t
tiny_sample(const tiny_llm *m, const tiny_sampler *sampler, size_t position)
{
    uint8_t order[256];
    uint32_t k = sampler->top_k < 1 ? 1 : sampler->top_k > 256 ? 256 : sampler->top_k;
    if (sampler->temperature <= 0)
        k = 1;
    sort_likeliest(m->logits, order, k);
    if (k == 1)
        return order[0];
    float share[256];
    for (uint32_t i = 0; i < k; i++)
        share[i] = m->logits[order[i]] / sampler->temperature;
    softmax(share, k);
    double left = random_unit(sampler->seed, position);
    for (uint32_t i = 0; i + 1 < k; i++) {
        left -= share[i];
        if (left < 0)
            return order[i];
    }
    return order[k - 1];
}
