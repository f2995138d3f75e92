#include "native.h"

static int
out_of_range(const char *type)
{
    if (PyErr_ExceptionMatches(PyExc_OverflowError))
        PyErr_Format(PyExc_ValueError, "value is out of range of %s", type);
    return 0;
}

int
to_u64(PyObject *number, void *result)
{
    // numpy's integers are no ints, but have an __index__.
    PyObject *integer = PyNumber_Index(number);
    if (integer == NULL)
        return 0;
    uint64_t value = PyLong_AsUnsignedLongLong(integer);
    Py_DECREF(integer);
    if (value == UINT64_MAX && PyErr_Occurred())
        return out_of_range("uint64");
    *(uint64_t *)result = value;
    return 1;
}

int
to_i64(PyObject *number, void *result)
{
    int64_t value = PyLong_AsLongLong(number);
    if (value == -1 && PyErr_Occurred())
        return out_of_range("int64");
    *(int64_t *)result = value;
    return 1;
}

int
to_u32(PyObject *number, void *result)
{
    uint64_t value;
    if (!to_u64(number, &value))
        return 0;
    if (value > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "value is out of range of uint32");
        return 0;
    }
    *(uint32_t *)result = (uint32_t)value;
    return 1;
}

int
to_i32(PyObject *number, void *result)
{
    int64_t value;
    if (!to_i64(number, &value))
        return 0;
    if (value < INT32_MIN || value > INT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "value is out of range of int32");
        return 0;
    }
    *(int32_t *)result = (int32_t)value;
    return 1;
}

void *
allocate_array(Py_ssize_t count, size_t element)
{
    if (count > (Py_ssize_t)(PY_SSIZE_T_MAX / element)) {
        PyErr_NoMemory();
        return NULL;
    }
    void *array = PyMem_Calloc((size_t)count, element);
    if (array == NULL)
        PyErr_NoMemory();
    return array;
}

PyObject *
new_object(PyTypeObject *type)
{
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    return allocate(type, 0);
}

void
free_object(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

PyObject *
status_of(llm_status status)
{
    return PyLong_FromUnsignedLong(status);
}

PyObject *
list_of(const uint64_t *numbers, size_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    for (size_t i = 0; list != NULL && i < count; i++) {
        PyObject *number = PyLong_FromUnsignedLongLong(numbers[i]);
        if (number == NULL)
            Py_CLEAR(list);
        else
            PyList_SetItem(list, (Py_ssize_t)i, number);
    }
    return list;
}
