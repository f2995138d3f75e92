#include "native.h"

#include <string.h>

// What numpy's __array_struct__ points to (the array interface, version 3).
struct array_interface {
    int two;
    int num_dims;
    char kind;
    int item_bytes;
    int flags;
    Py_intptr_t *shape;
    Py_intptr_t *strides;
    void *data;
    PyObject *description;
};
#define ARRAY_IS_NATIVE 0x200

static bool
blocks_out_of_range(const char *name)
{
    PyErr_Format(PyExc_ValueError, "%s value is out of range, expected 0..%llu.", name,
                 (unsigned long long)UINT64_MAX);
    return false;
}

// An object that is no int, but may have an __index__, as numbers of numpy's in a list do.
static bool
read_indexable(const char *name, PyObject *number, uint64_t *index)
{
    PyObject *integer = PyNumber_Index(number);
    if (integer == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError))
            PyErr_Format(PyExc_TypeError, "%s inner type only support int, but got %R.", name,
                         (PyObject *)Py_TYPE(number));
        return false;
    }
    *index = PyLong_AsUnsignedLongLong(integer);
    Py_DECREF(integer);
    return *index != UINT64_MAX || !PyErr_Occurred() || blocks_out_of_range(name);
}

static bool
read_list(const char *name, PyObject *list, Blocks *blocks)
{
    bool is_list = PyList_Check(list);
    Py_ssize_t count = is_list ? PyList_Size(list) : PyTuple_Size(list);
    blocks->indices = allocate_array(count, sizeof(uint64_t));
    if (blocks->indices == NULL)
        return false;
    for (; blocks->count < count; blocks->count++) {
        PyObject *number =
            is_list ? PyList_GetItem(list, blocks->count) : PyTuple_GetItem(list, blocks->count);
        uint64_t *index = &blocks->indices[blocks->count];
        bool good = true;
        if (number == NULL)
            return false;
        if (PyLong_CheckExact(number)) {
            *index = PyLong_AsUnsignedLongLong(number);
            good = *index != UINT64_MAX || !PyErr_Occurred() || blocks_out_of_range(name);
        } else {
            // An __index__ may do anything, shortening the list included.
            Py_INCREF(number);
            good = read_indexable(name, number, index);
            Py_DECREF(number);
        }
        if (!good)
            return false;
    }
    return true;
}

static bool
read_attribute(PyObject *object, const char *name, int64_t *value)
{
    PyObject *attribute = PyObject_GetAttrString(object, name);
    if (attribute == NULL)
        return false;
    *value = PyLong_AsLongLong(attribute);
    Py_DECREF(attribute);
    return *value != -1 || !PyErr_Occurred();
}

static bool
read_range(const char *name, PyObject *range, Blocks *blocks)
{
    int64_t start, stop, step;
    Py_ssize_t count = PyObject_Size(range);
    if (count < 0 || !read_attribute(range, "start", &start) ||
        !read_attribute(range, "stop", &stop) || !read_attribute(range, "step", &step)) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError)) {
            PyErr_Clear();
            return blocks_out_of_range(name);
        }
        return false;
    }
    // What lies between an index and an end that fit, fits.
    if (count > 0 && (start < 0 || start + step * (int64_t)(count - 1) < 0))
        return blocks_out_of_range(name);
    blocks->indices = allocate_array(count, sizeof(uint64_t));
    if (blocks->indices == NULL)
        return false;
    for (blocks->count = 0; blocks->count < count; blocks->count++)
        blocks->indices[blocks->count] = (uint64_t)(start + step * (int64_t)blocks->count);
    return true;
}

static uint64_t
read_item(const char *item, const struct array_interface *array, int64_t *sign)
{
    union {
        int8_t i8;
        int16_t i16;
        int32_t i32;
        int64_t i64;
        uint8_t u8;
        uint16_t u16;
        uint32_t u32;
        uint64_t u64;
    } value = {0};
    memcpy(&value, item, (size_t)array->item_bytes);
    bool has_sign = array->kind == 'i';
    switch (array->item_bytes) {
    case 1:
        value.i64 = has_sign ? value.i8 : value.u8;
        break;
    case 2:
        value.i64 = has_sign ? value.i16 : value.u16;
        break;
    case 4:
        value.i64 = has_sign ? value.i32 : (int64_t)value.u32;
        break;
    default:
        break;
    }
    *sign |= has_sign ? value.i64 : 0;
    return value.u64;
}

static bool
read_array(const char *name, const struct array_interface *array, Blocks *blocks)
{
    if (array->num_dims != 1) {
        PyErr_Format(PyExc_TypeError, "%s only support arrays of one dimension, but got %d.", name,
                     array->num_dims);
        return false;
    }
    if ((array->kind != 'i' && array->kind != 'u') || array->item_bytes > 8 ||
        (array->flags & ARRAY_IS_NATIVE) == 0) {
        PyErr_Format(PyExc_TypeError, "%s inner type only support int, but got items of kind %c.",
                     name, array->kind);
        return false;
    }
    Py_ssize_t count = array->shape[0], stride = array->strides[0];
    blocks->indices = allocate_array(count, sizeof(uint64_t));
    if (blocks->indices == NULL)
        return false;
    blocks->count = count;
    const char *item = array->data;
    int64_t sign = 0;
    if (array->item_bytes == 8 && stride == 8) {
        memcpy(blocks->indices, item, (size_t)count * sizeof(uint64_t));
        for (Py_ssize_t i = 0; i < count && array->kind == 'i'; i++)
            sign |= (int64_t)blocks->indices[i];
    } else {
        for (Py_ssize_t i = 0; i < count; i++, item += stride)
            blocks->indices[i] = read_item(item, array, &sign);
    }
    return sign >= 0 || blocks_out_of_range(name);
}

static bool
read_blocks(const char *name, PyObject *object, Blocks *blocks)
{
    if (PyList_Check(object) || PyTuple_Check(object))
        return read_list(name, object, blocks);
    if (Py_TYPE(object) == &PyRange_Type)
        return read_range(name, object, blocks);
    PyObject *capsule = PyObject_GetAttrString(object, "__array_struct__");
    void *array = capsule != NULL ? PyCapsule_GetPointer(capsule, NULL) : NULL;
    bool good = false;
    if (array != NULL) {
        good = read_array(name, array, blocks);
    } else {
        PyErr_Clear();
        PyErr_Format(
            PyExc_TypeError,
            "%s only support [list, tuple, range, numpy.ndarray, array.array], but got %R.", name,
            (PyObject *)Py_TYPE(object));
    }
    Py_XDECREF(capsule);
    return good;
}

// Blocks(name, list): the name is for what is raised.
static PyObject *
blocks_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    const char *name;
    PyObject *object;
    (void)keywords;
    if (!PyArg_ParseTuple(args, "sO", &name, &object))
        return NULL;
    PyObject *self = new_object(type);
    if (self != NULL && !read_blocks(name, object, (Blocks *)self))
        Py_CLEAR(self);
    return self;
}

static void
blocks_dealloc(PyObject *self)
{
    PyMem_Free(((Blocks *)self)->indices);
    free_object(self);
}

static Py_ssize_t
blocks_length(PyObject *self)
{
    return ((Blocks *)self)->count;
}

static PyType_Slot blocks_slots[] = {
    {Py_tp_doc, "Block indices, read once: Blocks(name, list, tuple, range or array)."},
    {Py_tp_new, blocks_new},
    {Py_tp_dealloc, blocks_dealloc},
    {Py_sq_length, blocks_length},
    {0, NULL},
};
PyType_Spec blocks_spec = {
    .name = "llm_datadist._native.Blocks",
    .basicsize = sizeof(Blocks),
    .flags = Py_TPFLAGS_DEFAULT,
    .slots = blocks_slots,
};
