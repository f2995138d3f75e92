#include "native.h"

// ---- Cache: llm_cache with its description ----

static bool
read_shape(Cache *self, PyObject *shape)
{
    Py_ssize_t count = PySequence_Size(shape);
    self->shape = count >= 0 ? allocate_array(count, sizeof(int64_t)) : NULL;
    if (self->shape == NULL)
        return false;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *dim = PySequence_GetItem(shape, i);
        bool good = dim != NULL && to_i64(dim, &self->shape[i]);
        Py_XDECREF(dim);
        if (!good)
            return false;
    }
    self->desc.shape = self->shape;
    self->desc.num_dims = (size_t)count;
    return true;
}

// `addrs`: how many there is room for, or the addresses.
static bool
read_addrs(Cache *self, PyObject *addrs)
{
    bool is_room = PyLong_Check(addrs);
    self->room = is_room ? PyLong_AsSsize_t(addrs) : PySequence_Size(addrs);
    self->addrs = self->room >= 0 ? allocate_array(self->room, sizeof(uintptr_t)) : NULL;
    if (self->addrs == NULL)
        return false;
    for (Py_ssize_t i = 0; !is_room && i < self->room; i++) {
        uint64_t value = 0;
        PyObject *addr = PySequence_GetItem(addrs, i);
        bool good = addr != NULL && to_u64(addr, &value);
        Py_XDECREF(addr);
        if (!good)
            return false;
        self->addrs[i] = (uintptr_t)value;
    }
    self->cache.tensor_addrs = self->addrs;
    self->cache.num_tensor_addrs = (size_t)self->room;
    return true;
}

// Cache(num_tensors, shape, data_type, placement, addrs, cache_id=-1)
static PyObject *
cache_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    uint32_t num_tensors, placement;
    int32_t data_type;
    int64_t cache_id = -1;
    PyObject *shape, *addrs;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "O&OO&O&O|O&", to_u32, &num_tensors, &shape, to_i32, &data_type,
                          to_u32, &placement, &addrs, to_i64, &cache_id))
        return NULL;
    Cache *self = (Cache *)new_object(type);
    if (self == NULL)
        return NULL;
    self->desc = (llm_cache_desc){
        .struct_size = sizeof(self->desc),
        .placement = placement,
        .num_tensors = num_tensors,
        .data_type = data_type,
    };
    self->cache = (llm_cache){
        .struct_size = sizeof(self->cache),
        .cache_id = cache_id,
        .desc = &self->desc,
    };
    if (!read_shape(self, shape) || !read_addrs(self, addrs)) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
cache_dealloc(PyObject *self)
{
    PyMem_Free(((Cache *)self)->shape);
    PyMem_Free(((Cache *)self)->addrs);
    free_object(self);
}

static PyObject *
cache_get_id(PyObject *self, void *closure)
{
    (void)closure;
    return PyLong_FromLongLong(((Cache *)self)->cache.cache_id);
}

static PyObject *
cache_get_addrs(PyObject *self, void *closure)
{
    const llm_cache *cache = &((Cache *)self)->cache;
    (void)closure;
    return list_of((const uint64_t *)cache->tensor_addrs, cache->num_tensor_addrs);
}

static PyGetSetDef cache_getset[] = {
    {"cache_id", cache_get_id, NULL, "The id, -1 without one.", NULL},
    {"addrs", cache_get_addrs, NULL, "The tensors' addresses.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};
static PyType_Slot cache_slots[] = {
    {Py_tp_doc, "Cache(num_tensors, shape, data_type, placement, addresses or room, cache_id=-1)."},
    {Py_tp_new, cache_new},
    {Py_tp_dealloc, cache_dealloc},
    {Py_tp_getset, cache_getset},
    {0, NULL},
};
PyType_Spec cache_spec = {
    .name = "llm_datadist._native.Cache",
    .basicsize = sizeof(Cache),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = cache_slots,
};

// ---- Index: where at a peer ----

bool
read_key(PyObject *tuple, llm_cache_key *key)
{
    key->struct_size = sizeof(*key);
    return PyArg_ParseTuple(tuple, "O&O&O&", to_u32, &key->kind, to_u64, &key->id, to_u64,
                            &key->model_id) != 0;
}

static bool
read_remote_addrs(Index *self, PyObject *addrs)
{
    Py_ssize_t count = PySequence_Size(addrs);
    self->addrs = count >= 0 ? allocate_array(count, sizeof(uint64_t)) : NULL;
    if (self->addrs == NULL)
        return false;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *addr = PySequence_GetItem(addrs, i);
        bool good = addr != NULL && to_u64(addr, &self->addrs[i]);
        Py_XDECREF(addr);
        if (!good)
            return false;
    }
    self->index.addrs = self->addrs;
    self->index.num_addrs = (size_t)count;
    return true;
}

// Index(cluster_id, cache_id, batch_index=0, generation=0, key=None, addrs=None)
static PyObject *
index_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    llm_cache_index index = {.struct_size = sizeof(index)};
    PyObject *key = Py_None, *addrs = Py_None;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "O&O&|O&O&OO", to_u64, &index.cluster_id, to_i64, &index.cache_id,
                          to_u32, &index.batch_index, to_u64, &index.generation, &key, &addrs))
        return NULL;
    Index *self = (Index *)new_object(type);
    if (self == NULL)
        return NULL;
    self->index = index;
    bool good = true;
    if (key != Py_None) {
        good = read_key(key, &self->key);
        self->index.key = &self->key;
    }
    if (good && addrs != Py_None)
        good = read_remote_addrs(self, addrs);
    if (!good) {
        Py_DECREF((PyObject *)self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
index_dealloc(PyObject *self)
{
    PyMem_Free(((Index *)self)->addrs);
    free_object(self);
}

static PyType_Slot index_slots[] = {
    {Py_tp_doc, "Index(cluster_id, cache_id, batch_index=0, generation=0, key=None, addrs=None)."},
    {Py_tp_new, index_new},
    {Py_tp_dealloc, index_dealloc},
    {0, NULL},
};
PyType_Spec index_spec = {
    .name = "llm_datadist._native.Index",
    .basicsize = sizeof(Index),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = index_slots,
};

// ---- Progress: how far ----

static PyObject *
progress_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    (void)keywords;
    if (!PyArg_ParseTuple(args, ""))
        return NULL;
    Progress *self = (Progress *)new_object(type);
    if (self != NULL)
        self->progress.struct_size = sizeof(self->progress);
    return (PyObject *)self;
}

// -> (bytes arrived, total bytes, bytes moved by the last call)
static PyObject *
progress_values(PyObject *self, PyObject *unused)
{
    const llm_progress *progress = &((Progress *)self)->progress;
    (void)unused;
    return Py_BuildValue("(KKK)", (unsigned long long)progress->bytes_arrived,
                         (unsigned long long)progress->total_bytes,
                         (unsigned long long)progress->bytes_moved);
}

static PyMethodDef progress_methods[] = {
    {"values", progress_values, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot progress_slots[] = {
    {Py_tp_doc, "Progress(): how far a transfer has come, and where the next call goes on."},
    {Py_tp_new, progress_new},
    {Py_tp_dealloc, free_object},
    {Py_tp_methods, progress_methods},
    {0, NULL},
};
PyType_Spec progress_spec = {
    .name = "llm_datadist._native.Progress",
    .basicsize = sizeof(Progress),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = progress_slots,
};

// ---- Param: how ----

static bool
read_objects(llm_kv_cache_ext_param *param, PyObject *notification, PyObject *progress)
{
    if (notification != Py_None) {
        char *bytes;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(notification, &bytes, &size) != 0)
            return false;
        param->notification = bytes;
        param->notification_bytes = (size_t)size;
    }
    if (progress == Py_None)
        return true;
    if (Py_TYPE(progress) != (PyTypeObject *)progress_type) {
        PyErr_SetString(PyExc_TypeError, "progress must be a Progress or None");
        return false;
    }
    param->progress = &((Progress *)progress)->progress;
    return true;
}

// All by keyword; layers are (first, last).
static PyObject *
param_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    static char *names[] = {"src_layers",   "dst_layers",    "tensor_num_per_layer",
                            "timeout_ms",   "src_offset",    "dst_offset",
                            "keep_key",     "release_lease", "allow_other_type",
                            "notification", "progress",      NULL};
    llm_kv_cache_ext_param param = LLM_KV_CACHE_EXT_PARAM_INIT;
    PyObject *notification = Py_None, *progress = Py_None;
    int keep_key = 0, release_lease = 0, allow_other_type = 0;
    if (!PyArg_ParseTupleAndKeywords(
            args, keywords, "|$(O&O&)(O&O&)O&O&O&O&pppOO", names, to_i32, &param.src_layer_range[0],
            to_i32, &param.src_layer_range[1], to_i32, &param.dst_layer_range[0], to_i32,
            &param.dst_layer_range[1], to_u32, &param.tensor_num_per_layer, to_u32,
            &param.timeout_ms, to_u64, &param.src_offset, to_u64, &param.dst_offset, &keep_key,
            &release_lease, &allow_other_type, &notification, &progress))
        return NULL;
    param.keep_key = keep_key != 0;
    param.release_lease = release_lease != 0;
    param.allow_other_type = allow_other_type != 0;
    if (!read_objects(&param, notification, progress))
        return NULL;
    Param *self = (Param *)new_object(type);
    if (self == NULL)
        return NULL;
    self->param = param;
    Py_INCREF(notification);
    self->notification = notification;
    Py_INCREF(progress);
    self->progress = progress;
    return (PyObject *)self;
}

static void
param_dealloc(PyObject *self)
{
    Py_XDECREF(((Param *)self)->notification);
    Py_XDECREF(((Param *)self)->progress);
    free_object(self);
}

static PyType_Slot param_slots[] = {
    {Py_tp_doc, "Param(*, src_layers, dst_layers, tensor_num_per_layer, ...): see _native.pyi."},
    {Py_tp_new, param_new},
    {Py_tp_dealloc, param_dealloc},
    {0, NULL},
};
PyType_Spec param_spec = {
    .name = "llm_datadist._native.Param",
    .basicsize = sizeof(Param),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = param_slots,
};
