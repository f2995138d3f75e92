#include "native.h"

#include <unistd.h>

typedef struct {
    PyObject ob_base;
    llm_memory_hold *hold;
    pid_t pid;
} Hold;

// -> (status, what keeps the memory as long as it lives)
PyObject *
instance_hold(PyObject *self, PyObject *number)
{
    llm_status status;
    int64_t cache_id;
    llm_memory_hold *hold = NULL;
    if (!to_i64(number, &cache_id))
        return NULL;
    Hold *result = (Hold *)new_object((PyTypeObject *)hold_type);
    if (result == NULL)
        return NULL;
    Py_BEGIN_ALLOW_THREADS status = llm_hold_memory(dd_of(self), cache_id, &hold);
    Py_END_ALLOW_THREADS result->hold = hold;
    result->pid = getpid();
    return Py_BuildValue("(kN)", (unsigned long)status, (PyObject *)result);
}

static void
hold_dealloc(PyObject *self)
{
    Hold *hold = (Hold *)self;
    // In a forked child it is the parent's.
    if (hold->pid == getpid()) {
        Py_BEGIN_ALLOW_THREADS llm_release_memory(hold->hold);
        Py_END_ALLOW_THREADS
    }
    free_object(self);
}

static PyType_Slot hold_slots[] = {
    {Py_tp_doc, "What keeps the memory of a cache where it is."},
    {Py_tp_dealloc, hold_dealloc},
    {0, NULL},
};
PyType_Spec hold_spec = {
    .name = "llm_datadist._native.Hold",
    .basicsize = sizeof(Hold),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = hold_slots,
};
