/*
 * llm_datadist._native: the C library as Python calls it.
 *
 * Copyright the llm-datadist authors.  SPDX-License-Identifier: Apache-2.0
 *
 * Written for the stable ABI of Python 3.9, so that one module serves every later version.  The types
 * hold the C structs of a call's arguments: Cache, Index, Param and Blocks are made once, and
 * checked then; an Instance's methods pass them on with the GIL released.  Methods answer with the C
 * status and leave it to Python to raise; what a status explains is in last_error().
 *
 * Strings come as bytes, and lists of blocks are copied: nothing that another thread may change
 * meanwhile is read without the GIL.
 */
#ifndef LLM_PYTHON_NATIVE_H
#define LLM_PYTHON_NATIVE_H

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x03090000
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>

#include <llm_datadist/llm_datadist_c.h>

// ---- convert.c ----

// For PyArg_ParseTuple's O&: TypeError for what is no int, ValueError for one out of range.
int to_u64(PyObject *number, void *result);
int to_i64(PyObject *number, void *result);
int to_u32(PyObject *number, void *result);
int to_i32(PyObject *number, void *result);

PyObject *status_of(llm_status status);
PyObject *list_of(const uint64_t *numbers, size_t count);

// Zeros; NULL with an exception.  PyMem_Free frees it.
void *allocate_array(Py_ssize_t count, size_t element);

// What every tp_new begins and every tp_dealloc ends with.
PyObject *new_object(PyTypeObject *type);
void free_object(PyObject *self);

// ---- blocks.c: a list of block indices ----

typedef struct {
    PyObject ob_base;
    uint64_t *indices;
    Py_ssize_t count;
} Blocks;

// ---- structs.c: llm_cache with its description, llm_cache_index, llm_progress,
// llm_kv_cache_ext_param ----

typedef struct {
    PyObject ob_base;
    llm_cache cache;
    llm_cache_desc desc;
    int64_t *shape;
    uintptr_t *addrs;
    Py_ssize_t room;
} Cache;

typedef struct {
    PyObject ob_base;
    llm_cache_index index;
    llm_cache_key key;
    uint64_t *addrs;
} Index;

typedef struct {
    PyObject ob_base;
    llm_progress progress;
} Progress;

typedef struct {
    PyObject ob_base;
    llm_kv_cache_ext_param param;
    PyObject *notification;
    PyObject *progress;
} Param;

// (kind, id, model id).
bool read_key(PyObject *tuple, llm_cache_key *key);

extern PyType_Spec blocks_spec, cache_spec, index_spec, progress_spec, param_spec, hold_spec,
    instance_spec;
extern PyObject *blocks_type, *cache_type, *index_type, *progress_type, *param_type,
    *hold_type; // module.c

// ---- Instance: llm_datadist; instance.c has its table of methods ----

llm_datadist *dd_of(PyObject *self);

PyObject *instance_hold(PyObject *self, PyObject *number); // hold.c

PyObject *instance_link(PyObject *self, PyObject *args);
PyObject *instance_unlink(PyObject *self, PyObject *args);
PyObject *instance_link_info(PyObject *self, PyObject *number);
PyObject *instance_links(PyObject *self, PyObject *unused);
PyObject *instance_poll_link_event(PyObject *self, PyObject *unused);
PyObject *instance_listen_port(PyObject *self, PyObject *number);
PyObject *instance_check_link(PyObject *self, PyObject *number);

PyObject *instance_transfer(PyObject *self, PyObject *args);
PyObject *instance_start(PyObject *self, PyObject *args);
PyObject *instance_poll(PyObject *self, PyObject *number);
PyObject *instance_release(PyObject *self, PyObject *number);
PyObject *instance_get_progress(PyObject *self, PyObject *args);
PyObject *instance_query(PyObject *self, PyObject *index);
PyObject *instance_transfer_fd(PyObject *self, PyObject *unused);
PyObject *instance_notification_fd(PyObject *self, PyObject *unused);
PyObject *instance_poll_notification(PyObject *self, PyObject *unused);

PyObject *instance_lease_open(PyObject *self, PyObject *args);
PyObject *instance_lease_renew(PyObject *self, PyObject *args);
PyObject *instance_lease_poll(PyObject *self, PyObject *number);
PyObject *instance_lease_close(PyObject *self, PyObject *number);

// Adds PULL_CACHE and the other kinds of transfers.
bool add_transfer_kinds(PyObject *module);
// Adds LINK_READY and LINK_SUSPECT.
bool add_link_states(PyObject *module);

#endif
