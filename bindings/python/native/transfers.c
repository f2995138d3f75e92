#include "native.h"

// So often a signal's handler gets its turn while the main thread waits.
#define SLICE_MS 20

// X(kind, C call, its start, the C arguments between instance and param)
#define TRANSFERS(X)                                                                               \
    X(PULL_CACHE, llm_pull_kv_cache, llm_start_pull_kv_cache,                                      \
      (&t.index->index, &t.cache->cache, t.slot, t.size))                                          \
    X(PULL_BLOCKS, llm_pull_kv_blocks, llm_start_pull_kv_blocks,                                   \
      (&t.index->index, &t.cache->cache, SRC_BLOCKS, DST_BLOCKS))                                  \
    X(PULL_TO_BLOCKS, llm_pull_kv_cache_to_blocks, llm_start_pull_kv_cache_to_blocks,              \
      (&t.index->index, &t.cache->cache, DST_BLOCKS, t.size))                                      \
    X(PUSH_CACHE, llm_push_kv_cache, llm_start_push_kv_cache,                                      \
      (&t.cache->cache, &t.index->index, t.slot, t.size))                                          \
    X(PUSH_BLOCKS, llm_push_kv_blocks, llm_start_push_kv_blocks,                                   \
      (&t.cache->cache, &t.index->index, SRC_BLOCKS, DST_BLOCKS))
#define SRC_BLOCKS t.src->indices, (size_t)t.src->count
#define DST_BLOCKS t.dst->indices, (size_t)t.dst->count
#define UNWRAP(...) __VA_ARGS__

enum transfer_kind {
#define KIND(kind, call, start, arguments) kind,
    TRANSFERS(KIND)
#undef KIND
};

struct transfer {
    int kind;
    Cache *cache;
    Index *index;
    const llm_kv_cache_ext_param *param;
    uint32_t slot;
    int64_t size;
    Blocks *src;
    Blocks *dst;
};

static bool
read_blocks_argument(PyObject *object, Blocks **blocks)
{
    if (Py_TYPE(object) != (PyTypeObject *)blocks_type) {
        PyErr_SetString(PyExc_TypeError, "the blocks must be Blocks");
        return false;
    }
    *blocks = (Blocks *)object;
    return true;
}

// (kind, cache, index, param or None, and two more): slot and size; source and destination Blocks;
// for PULL_TO_BLOCKS size and destination Blocks.
static bool
read_transfer(PyObject *args, struct transfer *t, PyObject **give_up)
{
    PyObject *param, *first, *second;
    if (!PyArg_ParseTuple(args, "iO!O!OOO|O", &t->kind, cache_type, &t->cache, index_type,
                          &t->index, &param, &first, &second, give_up))
        return false;
    if (param != Py_None && Py_TYPE(param) != (PyTypeObject *)param_type) {
        PyErr_SetString(PyExc_TypeError, "param must be a Param or None");
        return false;
    }
    t->param = param == Py_None ? NULL : &((Param *)param)->param;
    if (t->kind == PULL_CACHE || t->kind == PUSH_CACHE)
        return to_u32(first, &t->slot) && to_i64(second, &t->size);
    if (t->kind == PULL_TO_BLOCKS)
        return to_i64(first, &t->size) && read_blocks_argument(second, &t->dst);
    return read_blocks_argument(first, &t->src) && read_blocks_argument(second, &t->dst);
}

// Without the GIL.
static llm_status
run_transfer(llm_datadist *dd, struct transfer t)
{
    switch (t.kind) {
#define RUN(kind, call, start, arguments)                                                          \
    case kind:                                                                                     \
        return call(dd, UNWRAP arguments, t.param);
        TRANSFERS(RUN)
#undef RUN
    default:
        return LLM_PARAM_INVALID;
    }
}

static llm_status
start_transfer(llm_datadist *dd, struct transfer t, uint64_t *id)
{
    switch (t.kind) {
#define START(kind, call, start, arguments)                                                        \
    case kind:                                                                                     \
        return start(dd, UNWRAP arguments, t.param, id);
        TRANSFERS(START)
#undef START
    default:
        return LLM_PARAM_INVALID;
    }
}

// Calls give_up(id) while an exception is set, which it keeps.
static void
give_up_transfer(PyObject *give_up, uint64_t id)
{
    PyObject *type, *value, *traceback;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *result = PyObject_CallFunction(give_up, "K", (unsigned long long)id);
    if (result == NULL)
        PyErr_WriteUnraisable(give_up);
    Py_XDECREF(result);
    PyErr_Restore(type, value, traceback);
}

// A push's end may have to wait for its peer: it is started and awaited in slices, between which signals
// are handled.  If a handler raises, give_up(id) is called, which is to release the transfer.
static PyObject *
push_interruptibly(llm_datadist *dd, struct transfer t, PyObject *give_up)
{
    llm_status status;
    uint64_t id = 0;
    Py_BEGIN_ALLOW_THREADS status = start_transfer(dd, t, &id);
    if (status == LLM_SUCCESS)
        status = llm_transfer_wait(dd, id, SLICE_MS);
    Py_END_ALLOW_THREADS while (status == LLM_TRANSFER_PENDING)
    {
        if (PyErr_CheckSignals() != 0) {
            give_up_transfer(give_up, id);
            return NULL;
        }
        Py_BEGIN_ALLOW_THREADS status = llm_transfer_wait(dd, id, SLICE_MS);
        Py_END_ALLOW_THREADS
    }
    if (id != 0) {
        Py_BEGIN_ALLOW_THREADS llm_transfer_release(dd, id);
        Py_END_ALLOW_THREADS
    }
    return status_of(status);
}

struct handling {
    PyThreadState *thread;
    bool raised;
};

// Handles signals in the middle of a C call.
static int
handle_signals(void *arg)
{
    struct handling *handling = arg;
    PyEval_RestoreThread(handling->thread);
    handling->raised = PyErr_CheckSignals() != 0;
    handling->thread = PyEval_SaveThread();
    return handling->raised;
}

static PyObject *
pull_interruptibly(llm_datadist *dd, struct transfer t)
{
    struct handling handling = {0};
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    if (t.param != NULL)
        param = *t.param;
    param.interrupted = handle_signals;
    param.interrupted_arg = &handling;
    t.param = &param;
    handling.thread = PyEval_SaveThread();
    llm_status status = run_transfer(dd, t);
    PyEval_RestoreThread(handling.thread);
    return handling.raised ? NULL : status_of(status);
}

// transfer(kind, ..., give_up) -> status; give_up may be None, where no signals are handled.
PyObject *
instance_transfer(PyObject *self, PyObject *args)
{
    llm_status status;
    struct transfer t = {0};
    PyObject *give_up = Py_None;
    if (!read_transfer(args, &t, &give_up))
        return NULL;
    if (give_up != Py_None)
        return t.kind == PUSH_CACHE || t.kind == PUSH_BLOCKS
                   ? push_interruptibly(dd_of(self), t, give_up)
                   : pull_interruptibly(dd_of(self), t);
    Py_BEGIN_ALLOW_THREADS status = run_transfer(dd_of(self), t);
    Py_END_ALLOW_THREADS return status_of(status);
}

// start(kind, ...) -> (status, id)
PyObject *
instance_start(PyObject *self, PyObject *args)
{
    llm_status status;
    struct transfer t = {0};
    PyObject *unused;
    uint64_t id = 0;
    if (!read_transfer(args, &t, &unused))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = start_transfer(dd_of(self), t, &id);
    Py_END_ALLOW_THREADS return Py_BuildValue("(kK)", (unsigned long)status,
                                              (unsigned long long)id);
}

PyObject *
instance_poll(PyObject *self, PyObject *number)
{
    uint64_t id;
    return to_u64(number, &id) ? status_of(llm_transfer_poll(dd_of(self), id)) : NULL;
}

PyObject *
instance_release(PyObject *self, PyObject *number)
{
    llm_status status;
    uint64_t id;
    if (!to_u64(number, &id))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = llm_transfer_release(dd_of(self), id);
    Py_END_ALLOW_THREADS return status_of(status);
}

// get_progress(id, Progress) -> status
PyObject *
instance_get_progress(PyObject *self, PyObject *args)
{
    uint64_t id;
    Progress *progress;
    if (!PyArg_ParseTuple(args, "O&O!", to_u64, &id, progress_type, &progress))
        return NULL;
    return status_of(llm_transfer_get_progress(dd_of(self), id, &progress->progress));
}

// query(Index) -> (status, cache id, batch index, tensors, slots, stride, bytes, generation, data type,
// shape)
PyObject *
instance_query(PyObject *self, PyObject *index)
{
    llm_status status;
    llm_cache_info info = {.struct_size = sizeof(info)};
    if (Py_TYPE(index) != (PyTypeObject *)index_type) {
        PyErr_SetString(PyExc_TypeError, "index must be an Index");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS status = llm_query_cache(dd_of(self), &((Index *)index)->index, &info);
    Py_END_ALLOW_THREADS PyObject *shape = PyTuple_New((Py_ssize_t)info.num_dims);
    for (uint32_t i = 0; shape != NULL && i < info.num_dims; i++) {
        PyObject *dim = PyLong_FromLongLong(info.dims[i]);
        if (dim == NULL)
            Py_CLEAR(shape);
        else
            PyTuple_SetItem(shape, (Py_ssize_t)i, dim);
    }
    if (shape == NULL)
        return NULL;
    return Py_BuildValue("(kLIIKKKKiN)", (unsigned long)status, (long long)info.cache_id,
                         info.batch_index, info.num_tensors, (unsigned long long)info.num_slots,
                         (unsigned long long)info.stride, (unsigned long long)info.tensor_bytes,
                         (unsigned long long)info.generation, (int)info.data_type, shape);
}

// ---- leases ----

// lease_open(cache_id, first_block, num_blocks, duration_ms, num_releases) -> (status, generation)
PyObject *
instance_lease_open(PyObject *self, PyObject *args)
{
    llm_lease_desc desc = {.struct_size = sizeof(desc)};
    uint64_t generation = 0;
    if (!PyArg_ParseTuple(args, "O&O&O&O&O&", to_i64, &desc.cache_id, to_u64, &desc.first_block,
                          to_u64, &desc.num_blocks, to_u32, &desc.duration_ms, to_u32,
                          &desc.num_releases))
        return NULL;
    llm_status status = llm_lease_open(dd_of(self), &desc, &generation);
    return Py_BuildValue("(kK)", (unsigned long)status, (unsigned long long)generation);
}

PyObject *
instance_lease_renew(PyObject *self, PyObject *args)
{
    uint64_t generation;
    uint32_t duration_ms;
    if (!PyArg_ParseTuple(args, "O&O&", to_u64, &generation, to_u32, &duration_ms))
        return NULL;
    return status_of(llm_lease_renew(dd_of(self), generation, duration_ms));
}

PyObject *
instance_lease_poll(PyObject *self, PyObject *number)
{
    uint64_t generation;
    return to_u64(number, &generation) ? status_of(llm_lease_wait(dd_of(self), generation, 0))
                                       : NULL;
}

PyObject *
instance_lease_close(PyObject *self, PyObject *number)
{
    llm_status status;
    uint64_t generation;
    if (!to_u64(number, &generation))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = llm_lease_close(dd_of(self), generation);
    Py_END_ALLOW_THREADS return status_of(status);
}

// ---- what becomes readable ----

PyObject *
instance_transfer_fd(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromLong(llm_transfer_fd(dd_of(self)));
}

PyObject *
instance_notification_fd(PyObject *self, PyObject *unused)
{
    (void)unused;
    return PyLong_FromLong(llm_notification_fd(dd_of(self)));
}

// -> (status, cluster id, bytes)
PyObject *
instance_poll_notification(PyObject *self, PyObject *unused)
{
    char bytes[LLM_NOTIFICATION_BYTES_MAX];
    uint64_t cluster_id = 0;
    size_t size = 0;
    (void)unused;
    llm_status status =
        llm_poll_notification(dd_of(self), &cluster_id, bytes, sizeof(bytes), &size);
    if (status != LLM_SUCCESS)
        size = 0;
    return Py_BuildValue("(kKy#)", (unsigned long)status, (unsigned long long)cluster_id, bytes,
                         (Py_ssize_t)size);
}

bool
add_transfer_kinds(PyObject *module)
{
#define ADD(kind, call, start, arguments)                                                          \
    if (PyModule_AddIntConstant(module, #kind, kind) != 0)                                         \
        return false;
    TRANSFERS(ADD)
#undef ADD
    return true;
}
