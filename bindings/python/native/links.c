#include "native.h"

#include <string.h>

struct peers {
    llm_cluster_info *infos;
    llm_ip_info *addresses; // of all of them
    llm_status *rets;
    Py_ssize_t count;
};

static void
free_peers(struct peers *peers)
{
    PyMem_Free(peers->infos);
    PyMem_Free(peers->addresses);
    PyMem_Free(peers->rets);
}

// [(ip, port), ...], the ip as bytes.
static bool
read_addresses(PyObject *list, llm_ip_info *addresses)
{
    for (Py_ssize_t i = 0; i < PyList_Size(list); i++) {
        unsigned short port;
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "yH", &addresses[i].ip, &port))
            return false;
        addresses[i].port = port;
    }
    return true;
}

// [(cluster id, role, local addresses, remote addresses), ...]
static bool
read_peers(PyObject *list, struct peers *peers)
{
    peers->count = PyList_Size(list);
    peers->infos = allocate_array(peers->count, sizeof(*peers->infos));
    peers->rets = allocate_array(peers->count, sizeof(*peers->rets));
    if (peers->infos == NULL || peers->rets == NULL)
        return false;
    PyObject *local, *remote;
    Py_ssize_t total = 0;
    for (Py_ssize_t i = 0; i < peers->count; i++) {
        llm_cluster_info *info = &peers->infos[i];
        info->struct_size = sizeof(*info);
        if (!PyArg_ParseTuple(PyList_GetItem(list, i), "O&O&O!O!", to_u64, &info->remote_cluster_id,
                              to_i32, &info->remote_role_type, &PyList_Type, &local, &PyList_Type,
                              &remote))
            return false;
        info->num_local_ip_infos = (size_t)PyList_Size(local);
        info->num_remote_ip_infos = (size_t)PyList_Size(remote);
        total += PyList_Size(local) + PyList_Size(remote);
    }
    llm_ip_info *next = peers->addresses = allocate_array(total, sizeof(*peers->addresses));
    for (Py_ssize_t i = 0; i < peers->count && next != NULL; i++) {
        llm_cluster_info *info = &peers->infos[i];
        PyObject *peer = PyList_GetItem(list, i);
        info->local_ip_infos = next;
        info->remote_ip_infos = next + info->num_local_ip_infos;
        if (!read_addresses(PyTuple_GetItem(peer, 2), next) ||
            !read_addresses(PyTuple_GetItem(peer, 3), next + info->num_local_ip_infos))
            return false;
        next += info->num_local_ip_infos + info->num_remote_ip_infos;
    }
    return next != NULL;
}

static PyObject *
link_results(llm_status status, const struct peers *peers, size_t num_rets)
{
    PyObject *rets = PyList_New((Py_ssize_t)num_rets);
    for (size_t i = 0; rets != NULL && i < num_rets; i++)
        PyList_SetItem(rets, (Py_ssize_t)i, status_of(peers->rets[i]));
    return rets != NULL ? Py_BuildValue("(kN)", (unsigned long)status, rets) : NULL;
}

// link(peers, timeout_ms) -> (status, [status of each])
PyObject *
instance_link(PyObject *self, PyObject *args)
{
    llm_status status;
    PyObject *list, *result = NULL;
    int32_t timeout_ms;
    size_t num_rets = 0;
    struct peers peers = {0};
    if (!PyArg_ParseTuple(args, "O!O&", &PyList_Type, &list, to_i32, &timeout_ms))
        return NULL;
    if (read_peers(list, &peers)) {
        Py_BEGIN_ALLOW_THREADS status = llm_link_clusters(
            dd_of(self), peers.infos, (size_t)peers.count, peers.rets, &num_rets, timeout_ms);
        Py_END_ALLOW_THREADS result = link_results(status, &peers, num_rets);
    }
    free_peers(&peers);
    return result;
}

// unlink(peers, timeout_ms, force), likewise
PyObject *
instance_unlink(PyObject *self, PyObject *args)
{
    llm_status status;
    PyObject *list, *result = NULL;
    int32_t timeout_ms;
    int force;
    size_t num_rets = 0;
    struct peers peers = {0};
    if (!PyArg_ParseTuple(args, "O!O&p", &PyList_Type, &list, to_i32, &timeout_ms, &force))
        return NULL;
    if (read_peers(list, &peers)) {
        Py_BEGIN_ALLOW_THREADS status =
            llm_unlink_clusters(dd_of(self), peers.infos, (size_t)peers.count, peers.rets,
                                &num_rets, timeout_ms, force);
        Py_END_ALLOW_THREADS result = link_results(status, &peers, num_rets);
    }
    free_peers(&peers);
    return result;
}

// -> (status, state, transport, reason)
PyObject *
instance_link_info(PyObject *self, PyObject *number)
{
    llm_status status;
    uint64_t cluster_id;
    llm_link_info info = {.struct_size = sizeof(info)};
    if (!to_u64(number, &cluster_id))
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = llm_get_link_info(dd_of(self), cluster_id, &info);
    Py_END_ALLOW_THREADS return Py_BuildValue(
        "(kIsN)", (unsigned long)status, info.state, info.transport,
        PyUnicode_DecodeUTF8(info.reason, (Py_ssize_t)strlen(info.reason), "replace"));
}

// -> (status, cluster id, state)
PyObject *
instance_poll_link_event(PyObject *self, PyObject *unused)
{
    llm_status status;
    llm_link_info info = {.struct_size = sizeof(info)};
    (void)unused;
    Py_BEGIN_ALLOW_THREADS status = llm_poll_link_event(dd_of(self), &info);
    Py_END_ALLOW_THREADS return Py_BuildValue("(kKI)", (unsigned long)status,
                                              (unsigned long long)info.cluster_id, info.state);
}

bool
add_link_states(PyObject *module)
{
    return PyModule_AddIntConstant(module, "LINK_READY", LLM_LINK_READY) == 0 &&
           PyModule_AddIntConstant(module, "LINK_SUSPECT", LLM_LINK_SUSPECT) == 0;
}

// -> (status, [cluster id, ...])
PyObject *
instance_links(PyObject *self, PyObject *unused)
{
    llm_status status = LLM_SUCCESS;
    size_t room = 64, count = 0;
    uint64_t *ids = NULL;
    PyObject *list = NULL;
    (void)unused;
    for (;;) {
        PyMem_Free(ids);
        ids = allocate_array((Py_ssize_t)room, sizeof(*ids));
        if (ids == NULL)
            return NULL;
        Py_BEGIN_ALLOW_THREADS status = llm_list_links(dd_of(self), ids, room, &count);
        Py_END_ALLOW_THREADS if (count <= room) break;
        room = count;
    }
    list = list_of(ids, count);
    PyMem_Free(ids);
    return list != NULL ? Py_BuildValue("(kN)", (unsigned long)status, list) : NULL;
}

// -> (status, port)
PyObject *
instance_listen_port(PyObject *self, PyObject *number)
{
    uint64_t device_index;
    uint16_t port = 0;
    if (!to_u64(number, &device_index))
        return NULL;
    llm_status status = llm_get_listen_port(dd_of(self), device_index, &port);
    return Py_BuildValue("(kH)", (unsigned long)status, port);
}

PyObject *
instance_check_link(PyObject *self, PyObject *number)
{
    uint64_t cluster_id;
    return to_u64(number, &cluster_id) ? status_of(llm_check_link_status(dd_of(self), cluster_id))
                                       : NULL;
}
