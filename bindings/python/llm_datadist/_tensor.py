"""Tensor and TensorDesc: arrays with a type of the library's, as v1 hands them out."""

import itertools
import typing
import weakref

import numpy as np

from ._check import check_isinstance, check_list_int64
from ._types import FP8, DataType, Shape

_NUMPY_TYPES = {
    DataType.DT_FLOAT: np.float32, DataType.DT_FLOAT16: np.float16, DataType.DT_BF16: np.float16,
    DataType.DT_INT8: np.int8, DataType.DT_INT16: np.int16, DataType.DT_UINT16: np.uint16,
    DataType.DT_UINT8: np.uint8, DataType.DT_INT32: np.int32, DataType.DT_INT64: np.int64,
    DataType.DT_UINT32: np.uint32, DataType.DT_UINT64: np.uint64, DataType.DT_BOOL: np.bool_,
    DataType.DT_DOUBLE: np.float64, **dict.fromkeys(FP8, np.uint8),
}
# One way only: an array of float16 is DT_FLOAT16 unless a description says DT_BF16, and so for FP8.
_DATA_TYPES = {np.dtype(numpy_type): data_type for data_type, numpy_type in _NUMPY_TYPES.items()
               if data_type is not DataType.DT_BF16 and data_type not in FP8}

_handles = itertools.count(1)
_tensors: "weakref.WeakValueDictionary[int, Tensor]" = weakref.WeakValueDictionary()


class TensorDesc:
    """Type and shape of a Tensor."""

    def __init__(self, dtype: DataType, shape: Shape) -> None:
        check_isinstance("dtype", dtype, DataType, allow_none=False)
        check_isinstance("shape", shape, [list, tuple], int, allow_none=False)
        check_list_int64("shape", shape)
        self._dtype, self._shape = dtype, [int(dim) for dim in shape]

    @property
    def dtype(self) -> DataType:
        """The type of an element."""
        return self._dtype

    @property
    def shape(self) -> typing.List[int]:
        """The dimensions."""
        return self._shape

    def __repr__(self) -> str:
        return f"TensorDesc({self._dtype.name}, {self._shape})"


class Tensor:
    """Host data with a type.

    `data` is an array, another Tensor (which is cloned) or the `handle` of one.  `tensor_desc` says what
    numpy can't: DT_BF16, whose 16-bit patterns come in an array of float16.
    """

    def __init__(self, data: typing.Union[np.ndarray, "Tensor", int],
                 tensor_desc: typing.Optional[TensorDesc] = None) -> None:
        check_isinstance("data", data, [np.ndarray, Tensor, int], allow_none=False)
        check_isinstance("tensor_desc", tensor_desc, TensorDesc)
        self._data: np.ndarray
        self._desc: TensorDesc
        if isinstance(data, Tensor):
            self._data, self._desc = data._data.copy(), TensorDesc(data._desc.dtype, data._desc.shape)
        elif isinstance(data, np.ndarray):
            self._data, self._desc = self._adopt(data, tensor_desc)
        else:
            other = _tensors.get(data)
            if other is None:
                raise RuntimeError(f"there is no tensor with handle {data}")
            self._data, self._desc = other._data, other._desc
        self._handle = next(_handles)
        _tensors[self._handle] = self

    @staticmethod
    def _adopt(data: np.ndarray, desc: typing.Optional[TensorDesc]
               ) -> typing.Tuple[np.ndarray, TensorDesc]:
        is_text = data.dtype.kind in "US"
        if not data.flags.c_contiguous:
            raise RuntimeError("the array must be C-contiguous")
        if desc is None:
            if is_text:
                return data.copy(), TensorDesc(DataType.DT_STRING, data.shape)
            if data.dtype not in _DATA_TYPES:
                raise RuntimeError(f"there is no data type for arrays of {data.dtype}")
            return data.copy(), TensorDesc(_DATA_TYPES[data.dtype], data.shape)
        if list(data.shape) != desc.shape:
            raise RuntimeError(f"the array has shape {list(data.shape)}, the desc {desc.shape}")
        fits = is_text if desc.dtype is DataType.DT_STRING else \
            data.dtype == np.dtype(_NUMPY_TYPES[desc.dtype])
        if not fits:
            raise RuntimeError(f"an array of {data.dtype} is no {desc.dtype.name}")
        return data.copy(), desc

    @property
    def handle(self) -> int:
        """A number by which another Tensor can share this one's data, as long as this one lives."""
        return self._handle

    @property
    def tensor_desc(self) -> TensorDesc:
        """Type and shape."""
        return self._desc

    @property
    def desc(self) -> TensorDesc:
        """The same as tensor_desc."""
        return self._desc

    def numpy(self, copy: bool = False) -> np.ndarray:
        """The data in its shape: float32 for DT_BF16, text only as a copy, else a read-only view."""
        check_isinstance("copy", copy, bool, allow_none=False)
        if self._desc.dtype is DataType.DT_STRING and not copy:
            raise RuntimeError("text needs copy=True")
        if self._desc.dtype is DataType.DT_BF16:
            return (self._data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        if copy:
            return self._data.copy()
        view = self._data.view()
        view.flags.writeable = False
        return view

    def __reduce__(self) -> typing.Tuple[typing.Any, ...]:
        return type(self), (self._data, self._desc)  # a handle of its own

    def __repr__(self) -> str:
        return f"Tensor({self._desc!r})"
