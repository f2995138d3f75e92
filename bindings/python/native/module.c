#include "native.h"

#include <string.h>

PyObject *blocks_type, *cache_type, *index_type, *progress_type, *param_type, *hold_type;

static PyObject *
text_of(size_t (*call)(char *, size_t))
{
    char small[512];
    size_t length = call(small, sizeof(small));
    if (length < sizeof(small))
        return PyUnicode_DecodeUTF8(small, (Py_ssize_t)length, "replace");
    char *large = allocate_array((Py_ssize_t)length + 1, 1);
    if (large == NULL)
        return NULL;
    call(large, length + 1);
    PyObject *text = PyUnicode_DecodeUTF8(large, (Py_ssize_t)strlen(large), "replace");
    PyMem_Free(large);
    return text;
}

static PyObject *
native_last_error(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return text_of(llm_last_error);
}

static PyObject *
native_describe(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return text_of(llm_describe);
}

static PyObject *
native_version(PyObject *module, PyObject *unused)
{
    (void)module;
    (void)unused;
    return PyUnicode_FromString(llm_version());
}

static PyObject *
native_recoverable(PyObject *module, PyObject *number)
{
    uint32_t status;
    (void)module;
    return to_u32(number, &status) ? PyBool_FromLong(llm_status_recoverable(status)) : NULL;
}

static PyObject *
native_data_type_bits(PyObject *module, PyObject *number)
{
    int32_t data_type;
    (void)module;
    return to_i32(number, &data_type) ? PyLong_FromUnsignedLong(llm_data_type_bits(data_type))
                                      : NULL;
}

static PyMethodDef functions[] = {
    {"last_error", native_last_error, METH_NOARGS, "Why this thread's last failed call failed."},
    {"describe", native_describe, METH_NOARGS, NULL},
    {"version", native_version, METH_NOARGS, NULL},
    {"recoverable", native_recoverable, METH_O, NULL},
    {"data_type_bits", native_data_type_bits, METH_O, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "llm_datadist._native",
    .m_doc = "The C library's calls.  Private: llm_datadist is the package to use.",
    .m_size = -1,
    .m_methods = functions,
};

static bool
add_type(PyObject *module, const char *name, PyType_Spec *spec, PyObject **kept)
{
    PyObject *type = PyType_FromSpec(spec);
    if (type == NULL)
        return false;
    *kept = type;
    Py_INCREF(type);
    return PyModule_AddObject(module, name, type) == 0;
}

PyMODINIT_FUNC PyInit__native(void);

PyMODINIT_FUNC
PyInit__native(void)
{
    PyObject *instance_type;
    PyObject *module = PyModule_Create(&definition);
    if (module == NULL)
        return NULL;
    bool good = add_type(module, "Blocks", &blocks_spec, &blocks_type) &&
                add_type(module, "Cache", &cache_spec, &cache_type) &&
                add_type(module, "Index", &index_spec, &index_type) &&
                add_type(module, "Progress", &progress_spec, &progress_type) &&
                add_type(module, "Param", &param_spec, &param_type) &&
                add_type(module, "Hold", &hold_spec, &hold_type) &&
                add_type(module, "Instance", &instance_spec, &instance_type) &&
                add_transfer_kinds(module) && add_link_states(module);
    if (!good)
        Py_CLEAR(module);
    return module;
}
