#include "native.h"

typedef struct {
    PyObject ob_base;
    llm_datadist *dd;
} Instance;

llm_datadist *
dd_of(PyObject *self)
{
    return ((Instance *)self)->dd;
}

// Instance(cluster_id, role)
static PyObject *
instance_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    uint64_t cluster_id;
    int32_t role;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "O&O&", to_u64, &cluster_id, to_i32, &role))
        return NULL;
    Instance *self = (Instance *)new_object(type);
    if (self == NULL)
        return NULL;
    if (llm_create(cluster_id, (llm_role)role, &self->dd) != LLM_SUCCESS) {
        Py_DECREF((PyObject *)self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void
instance_dealloc(PyObject *self)
{
    Instance *instance = (Instance *)self;
    Py_BEGIN_ALLOW_THREADS llm_destroy(instance->dd);
    Py_END_ALLOW_THREADS free_object(self);
}

static PyObject *
instance_forget(PyObject *self, PyObject *unused)
{
    (void)unused;
    ((Instance *)self)->dd = NULL;
    Py_RETURN_NONE;
}

// [(key, value), ...], all bytes, which the list keeps.
static llm_option *
read_options(PyObject *list, Py_ssize_t *count)
{
    *count = PyList_Size(list);
    llm_option *options = *count >= 0 ? allocate_array(*count, sizeof(*options)) : NULL;
    for (Py_ssize_t i = 0; options != NULL && i < *count; i++) {
        char *key, *value;
        PyObject *pair = PyList_GetItem(list, i);
        if (PyBytes_AsStringAndSize(PyTuple_GetItem(pair, 0), &key, NULL) != 0 ||
            PyBytes_AsStringAndSize(PyTuple_GetItem(pair, 1), &value, NULL) != 0) {
            PyMem_Free(options);
            return NULL;
        }
        options[i] = (llm_option){key, value};
    }
    return options;
}

static PyObject *
instance_initialize(PyObject *self, PyObject *list)
{
    llm_status status;
    Py_ssize_t count;
    llm_option *options = read_options(list, &count);
    if (options == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = llm_initialize(dd_of(self), options, (size_t)count);
    Py_END_ALLOW_THREADS PyMem_Free(options);
    return status_of(status);
}

static PyObject *
instance_finalize(PyObject *self, PyObject *unused)
{
    (void)unused;
    Py_BEGIN_ALLOW_THREADS llm_finalize(dd_of(self));
    Py_END_ALLOW_THREADS Py_RETURN_NONE;
}

static PyObject *
instance_set_role(PyObject *self, PyObject *args)
{
    llm_status status;
    int32_t role;
    PyObject *list;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "O&O!", to_i32, &role, &PyList_Type, &list))
        return NULL;
    llm_option *options = read_options(list, &count);
    if (options == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS status =
        llm_set_role(dd_of(self), (llm_role)role, options, (size_t)count);
    Py_END_ALLOW_THREADS PyMem_Free(options);
    return status_of(status);
}

// ---- caches ----

// Fills the Cache in.
static PyObject *
instance_allocate(PyObject *self, PyObject *args)
{
    llm_status status;
    Cache *cache;
    if (!PyArg_ParseTuple(args, "O!", cache_type, &cache))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = llm_allocate_cache(dd_of(self), &cache->desc, &cache->cache);
    Py_END_ALLOW_THREADS return status_of(status);
}

static PyObject *
instance_register(PyObject *self, PyObject *args)
{
    llm_status status;
    Cache *cache;
    if (!PyArg_ParseTuple(args, "O!", cache_type, &cache))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status =
        llm_register_kv_cache(dd_of(self), &cache->desc, (const uint64_t *)cache->addrs,
                              cache->cache.num_tensor_addrs, &cache->cache.cache_id);
    Py_END_ALLOW_THREADS return status_of(status);
}

static PyObject *
end_cache(PyObject *self, PyObject *number, llm_status (*call)(llm_datadist *, int64_t))
{
    llm_status status;
    int64_t cache_id;
    if (!to_i64(number, &cache_id))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = call(dd_of(self), cache_id);
    Py_END_ALLOW_THREADS return status_of(status);
}

static PyObject *
instance_deallocate(PyObject *self, PyObject *cache_id)
{
    return end_cache(self, cache_id, llm_deallocate_cache);
}

static PyObject *
instance_unregister(PyObject *self, PyObject *cache_id)
{
    return end_cache(self, cache_id, llm_unregister_kv_cache);
}

// ---- local copies ----

static PyObject *
instance_copy_cache(PyObject *self, PyObject *args)
{
    llm_status status;
    Cache *src, *dst;
    uint32_t src_slot, dst_slot;
    uint64_t offset;
    int64_t size;
    if (!PyArg_ParseTuple(args, "O!O!O&O&O&O&", cache_type, &src, cache_type, &dst, to_u32,
                          &src_slot, to_u32, &dst_slot, to_u64, &offset, to_i64, &size))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status =
        llm_copy_kv_cache(dd_of(self), &src->cache, &dst->cache, src_slot, dst_slot, offset, size);
    Py_END_ALLOW_THREADS return status_of(status);
}

static PyObject *
instance_copy_blocks(PyObject *self, PyObject *args)
{
    llm_status status;
    Cache *src, *dst;
    Blocks *from, *to;
    if (!PyArg_ParseTuple(args, "O!O!O!O!", cache_type, &src, cache_type, &dst, blocks_type, &from,
                          blocks_type, &to))
        return NULL;
    Py_BEGIN_ALLOW_THREADS const uint64_t *list = to->indices;
    size_t count = (size_t)to->count;
    status = llm_copy_kv_blocks(dd_of(self), &src->cache, &dst->cache, from->indices,
                                (size_t)from->count, &list, &count, 1);
    Py_END_ALLOW_THREADS return status_of(status);
}

static llm_cache_key *
read_keys(PyObject *list, Py_ssize_t *count)
{
    *count = PyList_Size(list);
    llm_cache_key *keys = *count >= 0 ? allocate_array(*count, sizeof(*keys)) : NULL;
    for (Py_ssize_t i = 0; keys != NULL && i < *count; i++) {
        if (!read_key(PyList_GetItem(list, i), &keys[i])) {
            PyMem_Free(keys);
            return NULL;
        }
    }
    return keys;
}

// bind_keys(cache_id, [(kind, id, model id), ...])
static PyObject *
instance_bind_keys(PyObject *self, PyObject *args)
{
    int64_t cache_id;
    PyObject *list;
    Py_ssize_t count;
    if (!PyArg_ParseTuple(args, "O&O!", to_i64, &cache_id, &PyList_Type, &list))
        return NULL;
    llm_cache_key *keys = read_keys(list, &count);
    if (keys == NULL)
        return NULL;
    llm_status status = llm_bind_cache_keys(dd_of(self), cache_id, keys, (size_t)count);
    PyMem_Free(keys);
    return status_of(status);
}

static PyObject *
instance_remove_key(PyObject *self, PyObject *tuple)
{
    llm_cache_key key;
    return read_key(tuple, &key) ? status_of(llm_remove_cache_key(dd_of(self), &key)) : NULL;
}

static PyMethodDef instance_methods[] = {
    {"forget", instance_forget, METH_NOARGS, "In a forked child: the instance is the parent's."},
    {"initialize", instance_initialize, METH_O, NULL},
    {"finalize", instance_finalize, METH_NOARGS, NULL},
    {"set_role", instance_set_role, METH_VARARGS, NULL},
    {"allocate", instance_allocate, METH_VARARGS, NULL},
    {"deallocate", instance_deallocate, METH_O, NULL},
    {"register", instance_register, METH_VARARGS, NULL},
    {"unregister", instance_unregister, METH_O, NULL},
    {"bind_keys", instance_bind_keys, METH_VARARGS, NULL},
    {"remove_key", instance_remove_key, METH_O, NULL},
    {"link", instance_link, METH_VARARGS, NULL},
    {"unlink", instance_unlink, METH_VARARGS, NULL},
    {"link_info", instance_link_info, METH_O, NULL},
    {"hold", instance_hold, METH_O, NULL},
    {"links", instance_links, METH_NOARGS, NULL},
    {"poll_link_event", instance_poll_link_event, METH_NOARGS, NULL},
    {"listen_port", instance_listen_port, METH_O, NULL},
    {"check_link", instance_check_link, METH_O, NULL},
    {"transfer", instance_transfer, METH_VARARGS, NULL},
    {"start", instance_start, METH_VARARGS, NULL},
    {"poll", instance_poll, METH_O, NULL},
    {"release", instance_release, METH_O, NULL},
    {"get_progress", instance_get_progress, METH_VARARGS, NULL},
    {"query", instance_query, METH_O, NULL},
    {"lease_open", instance_lease_open, METH_VARARGS, NULL},
    {"lease_renew", instance_lease_renew, METH_VARARGS, NULL},
    {"lease_poll", instance_lease_poll, METH_O, NULL},
    {"lease_close", instance_lease_close, METH_O, NULL},
    {"transfer_fd", instance_transfer_fd, METH_NOARGS, NULL},
    {"notification_fd", instance_notification_fd, METH_NOARGS, NULL},
    {"poll_notification", instance_poll_notification, METH_NOARGS, NULL},
    {"copy_cache", instance_copy_cache, METH_VARARGS, NULL},
    {"copy_blocks", instance_copy_blocks, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};
static PyType_Slot instance_slots[] = {
    {Py_tp_doc, "Instance(cluster_id, role): an instance of the C library."},
    {Py_tp_new, instance_new},
    {Py_tp_dealloc, instance_dealloc},
    {Py_tp_methods, instance_methods},
    {0, NULL},
};
PyType_Spec instance_spec = {
    .name = "llm_datadist._native.Instance",
    .basicsize = sizeof(Instance),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = instance_slots,
};
