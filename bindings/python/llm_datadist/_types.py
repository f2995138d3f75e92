"""Enumerations and the small classes that describe caches, keys and clusters."""

import enum
import re
import socket
import struct
import typing

import numpy as np

from . import _core
from ._check import (check_int32, check_int64, check_isinstance, check_list_int64, check_uint16,
                     check_uint32, check_uint64)
from ._status import LLMException, raise_if_false

Shape = typing.Union[typing.List[int], typing.Tuple[int, ...]]

INVALID_ID = 2**64 - 1


class LLMRole(enum.IntEnum):
    """What a cluster does: a prompt prefills and listens, a decoder links and pulls.

    In v2 mode the role is a label."""

    PROMPT = 1
    DECODER = 2
    MIX = 3

    def __str__(self) -> str:
        return f"LLMRole.{self.name}"


class Placement(enum.IntEnum):
    """Where a cache's memory is."""

    HOST = 0
    DEVICE = 1

    def __str__(self) -> str:
        return f"Placement.{self.name}"


class Memtype(enum.IntEnum):
    """Where memory is, for MemInfo.  Mind that the numbers are not Placement's."""

    MEM_TYPE_DEVICE = 0
    MEM_TYPE_HOST = 1

    def __str__(self) -> str:
        return f"Memtype.{self.name}"


class RegisterMemStatus(enum.IntEnum):
    """What query_register_mem_status answers."""

    OK = 0
    PREPARING = 1
    FAILED = 2

    def __str__(self) -> str:
        return f"RegisterMemStatus.{self.name}"


class DataType(enum.Enum):
    """Element types; the values are those of the C library.  The original has no names for FP8."""

    DT_FLOAT = 0
    DT_FLOAT16 = 1
    DT_INT8 = 2
    DT_INT32 = 3
    DT_UINT8 = 4
    DT_INT16 = 6
    DT_UINT16 = 7
    DT_UINT32 = 8
    DT_INT64 = 9
    DT_UINT64 = 10
    DT_DOUBLE = 11
    DT_BOOL = 12
    DT_STRING = 13
    DT_BF16 = 27
    DT_HIFLOAT8 = 34
    DT_FLOAT8_E5M2 = 35
    DT_FLOAT8_E4M3FN = 36
    DT_FLOAT8_E8M0 = 37


FP8 = (DataType.DT_HIFLOAT8, DataType.DT_FLOAT8_E5M2, DataType.DT_FLOAT8_E4M3FN,
       DataType.DT_FLOAT8_E8M0)


# numpy has no bfloat16 and no FP8: those bits are shown as uint16 and uint8.
_VIEW_DTYPES: typing.Dict[DataType, typing.Any] = {
    DataType.DT_FLOAT: np.float32, DataType.DT_FLOAT16: np.float16, DataType.DT_BF16: np.uint16,
    DataType.DT_INT8: np.int8, DataType.DT_INT16: np.int16, DataType.DT_UINT16: np.uint16,
    DataType.DT_UINT8: np.uint8, DataType.DT_INT32: np.int32, DataType.DT_INT64: np.int64,
    DataType.DT_UINT32: np.uint32, DataType.DT_UINT64: np.uint64, DataType.DT_BOOL: np.bool_,
    DataType.DT_DOUBLE: np.float64, **dict.fromkeys(FP8, np.uint8),
}


def view_dtype(data_type: DataType) -> np.dtype:
    """The numpy type of a view of such memory."""
    raise_if_false(data_type in _VIEW_DTYPES, "numpy has no type for {}", data_type)
    return np.dtype(_VIEW_DTYPES[data_type])


class MemInfo:
    """A piece of memory, for remap_registered_memory."""

    def __init__(self, mem_type: Memtype, addr: int, size: int) -> None:
        check_isinstance("mem_type", mem_type, Memtype, allow_none=False)
        check_isinstance("addr", addr, int, allow_none=False)
        check_isinstance("size", size, int, allow_none=False)
        self._mem_type, self._addr, self._size = mem_type, int(addr), int(size)

    @property
    def mem_type(self) -> Memtype:
        """Device or host memory."""
        return self._mem_type

    @property
    def addr(self) -> int:
        """Where it begins."""
        return self._addr

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    def __repr__(self) -> str:
        return f"MemInfo({self._mem_type.name}, addr={self._addr:#x}, size={self._size})"


Ip = typing.Union[str, int]

# A host name, or an IPv6 address, with brackets, a zone or without.
_OTHER_HOST = re.compile(r"[\w.-]*[A-Za-z_][\w.-]*|\[?[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*(%[\w.-]+)?\]?", re.ASCII)


def ip_to_int(ip: Ip) -> int:
    """A dotted quad as the integer that inet_aton's bytes make on a little-endian machine."""
    if not isinstance(ip, str):
        return int(ip)
    try:
        return struct.unpack("<I", socket.inet_aton(ip))[0]
    except (OSError, UnicodeError):
        raise RuntimeError(f"Can not parse ip str:{ip}") from None


def kept_ip(ip: Ip) -> Ip:
    """IPv4 as the original keeps it, an integer; IPv6 and host names as they are."""
    if isinstance(ip, str) and len(ip) < 256 and _OTHER_HOST.fullmatch(ip):
        return ip
    return ip_to_int(ip)


def ip_to_text(ip: Ip) -> str:
    return ip if isinstance(ip, str) else socket.inet_ntoa(ip.to_bytes(4, "little"))


def host_and_port(host: str, port: int) -> str:
    """As listen addresses are written."""
    return f"[{host}]:{port}" if ":" in host and not host.startswith("[") else f"{host}:{port}"


class LLMClusterInfo:
    """A remote cluster: its id, and the addresses at which the two sides meet, one per device.

        cluster = LLMClusterInfo()
        cluster.remote_cluster_id = 1
        cluster.append_local_ip_info("0.0.0.0", 0)
        cluster.append_remote_ip_info("10.0.0.1", 26000)
    """

    def __init__(self) -> None:
        self._remote_cluster_id = 0
        self._remote_role_type: typing.Union[LLMRole, int] = 0
        self._local_ip_info_list: typing.List[typing.Tuple[Ip, int]] = []
        self._remote_ip_info_list: typing.List[typing.Tuple[Ip, int]] = []

    @property
    def remote_cluster_id(self) -> int:
        """The peer's cluster id."""
        return self._remote_cluster_id

    @remote_cluster_id.setter
    def remote_cluster_id(self, remote_cluster_id: int) -> None:
        check_uint64("remote_cluster_id", remote_cluster_id)
        self._remote_cluster_id = int(remote_cluster_id)

    @property
    def remote_role_type(self) -> typing.Union[LLMRole, int]:
        """Kept, and otherwise unused, as in the original."""
        return self._remote_role_type

    @remote_role_type.setter
    def remote_role_type(self, remote_role_type: typing.Union[LLMRole, int]) -> None:
        check_isinstance("remote_role_type", remote_role_type, [LLMRole, int], allow_none=False)
        self._remote_role_type = remote_role_type

    @staticmethod
    def _address(ip: Ip, port: int) -> typing.Tuple[Ip, int]:
        check_isinstance("ip", ip, [str, int], allow_none=False)
        check_uint16("port", port)
        if not isinstance(ip, str):
            check_uint32("ip", ip)
        return kept_ip(ip), int(port)

    def append_local_ip_info(self, ip: Ip, port: int) -> None:
        """The address to link from; 0.0.0.0 lets the system choose one, and so does port 0.

        In v2 mode the port counts for nothing."""
        self._local_ip_info_list.append(self._address(ip, port))

    def append_remote_ip_info(self, ip: Ip, port: int) -> None:
        """The address at which the remote cluster listens: IPv4, IPv6 or a host name.

        A name is resolved when the link is made."""
        self._remote_ip_info_list.append(self._address(ip, port))

    @property
    def local_ip_info_list(self) -> typing.List[typing.Tuple[Ip, int]]:
        """(IP address, port) of each device here, as append_local_ip_info() took it; IPv4 as an integer."""
        return self._local_ip_info_list

    @property
    def remote_ip_info_list(self) -> typing.List[typing.Tuple[Ip, int]]:
        """Likewise, of the peer."""
        return self._remote_ip_info_list

    def __repr__(self) -> str:
        def texts(addresses: typing.List[typing.Tuple[Ip, int]]) -> typing.List[str]:
            return [host_and_port(ip_to_text(ip), port) for ip, port in addresses]
        return (f"LLMClusterInfo(remote_cluster_id={self._remote_cluster_id}, "
                f"local={texts(self._local_ip_info_list)}, "
                f"remote={texts(self._remote_ip_info_list)})")


class CacheDesc:
    """What a cache looks like: `num_tensors` tensors of one shape and type.

    The first dimension counts batch slots or blocks, whatever `batch_dim_index` says.
    """

    def __init__(self, num_tensors: int, shape: Shape, data_type: DataType,
                 placement: Placement = Placement.DEVICE, batch_dim_index: int = 0,
                 seq_len_dim_index: int = -1, kv_tensor_format: typing.Optional[str] = None) -> None:
        check_uint32("num_tensors", num_tensors)
        check_isinstance("shape", shape, [list, tuple], int, allow_none=False)
        check_list_int64("shape", shape)
        check_isinstance("data_type", data_type, DataType, allow_none=False)
        check_isinstance("placement", placement, Placement, allow_none=False)
        check_int32("batch_dim_index", batch_dim_index)
        check_int32("seq_len_dim_index", seq_len_dim_index)
        check_isinstance("kv_tensor_format", kv_tensor_format, str)
        raise_if_false(0 <= batch_dim_index < len(shape),
                       "batch_dim_index {} is out of range [0, {})", batch_dim_index, len(shape))
        raise_if_false(-1 <= seq_len_dim_index < len(shape),
                       "seq_len_dim_index {} is out of range [-1, {})", seq_len_dim_index,
                       len(shape))
        self._num_tensors = int(num_tensors)
        self._shape = shape
        self._data_type = data_type
        self._placement = placement
        self._batch_dim_index = int(batch_dim_index)
        self._seq_len_dim_index = int(seq_len_dim_index)
        self._kv_tensor_format = kv_tensor_format

    @property
    def num_tensors(self) -> int:
        """How many tensors a cache has."""
        return self._num_tensors

    @property
    def shape(self) -> Shape:
        """The object that was given, not a copy."""
        return self._shape

    @property
    def data_type(self) -> DataType:
        """The type of an element."""
        return self._data_type

    @property
    def placement(self) -> Placement:
        """Device or host memory."""
        return self._placement

    @property
    def batch_dim(self) -> int:
        """The dimension of the batch, which nothing depends on here."""
        return self._batch_dim_index

    @property
    def batch_size(self) -> int:
        """How long that dimension is."""
        return int(self._shape[self._batch_dim_index])

    @property
    def seq_len_dim_index(self) -> int:
        """The dimension of the sequence, -1 for none."""
        return self._seq_len_dim_index

    @property
    def kv_tensor_format(self) -> typing.Optional[str]:
        """A note of the caller's."""
        return self._kv_tensor_format

    @property
    def size(self) -> int:
        """Bytes of one tensor."""
        elements = 1
        for dim in self._shape:
            raise_if_false(dim > 0, "cannot compute tensor size of shape {}", self._shape)
            elements *= int(dim)
        size = (elements * _core.data_type_bits(self._data_type.value) + 7) // 8
        raise_if_false(size < 2**63, "cannot compute tensor size of shape {}", self._shape)
        return size

    def update_dim(self, dim_index: int, dim_value: int) -> None:
        """Changes one dimension; the shape must be a list."""
        check_int32("dim_index", dim_index)
        check_int64("dim_value", dim_value)
        raise_if_false(0 <= dim_index < len(self._shape), "dim_index {} is out of range [0, {})",
                       dim_index, len(self._shape))
        if isinstance(self._shape, tuple):
            self._shape = self._shape[:dim_index] + (dim_value,) + self._shape[dim_index + 1:]
        else:
            self._shape[dim_index] = dim_value

    def __repr__(self) -> str:
        return (f"CacheDesc(num_tensors={self._num_tensors}, shape={list(self._shape)}, "
                f"data_type={self._data_type.name}, placement={self._placement.name})")


def stride(desc: CacheDesc) -> int:
    """Bytes from one batch slot or block to the next."""
    return desc.size // int(desc.shape[0])


def _key_values(class_name: str, names: typing.Sequence[str], args: typing.Sequence[typing.Any],
                kwargs: typing.Dict[str, typing.Any]) -> typing.Dict[str, typing.Any]:
    raise_if_false(len(args) + len(kwargs) <= len(names), "{} takes at most {} params, but got {}",
                   class_name, len(names), len(args) + len(kwargs))
    values = dict(zip(names, args))
    for key, value in kwargs.items():
        name = "cluster_id" if key == "prompt_cluster_id" else key
        raise_if_false(name in names, "Unsupported param:{}", key)
        raise_if_false(name not in values, "{} is given twice", key)
        values[name] = value
    return values


class CacheKey:
    """A name for one batch slot of a cache, by which peers find it.

    A key with a req_id goes with the first pull of its slot that succeeds; one with a prefix_id stays
    for any number of pulls, until remove_cache_key.  Both keep the memory of a cache that was
    deallocated.

    CacheKey(cluster_id, req_id, model_id=0, prefix_id=2**64-1); `prompt_cluster_id` is another name of
    `cluster_id`, which says to a puller which peer to ask, and nothing to the one that allocates.
    req_id 2**64-1 is padding: a slot that nobody may pull.
    """

    def __init__(self, *args: int, **kwargs: int) -> None:
        values = _key_values("CacheKey", ("cluster_id", "req_id", "model_id", "prefix_id"), args,
                             kwargs)
        raise_if_false("cluster_id" in values, "cluster_id is required")
        raise_if_false("req_id" in values, "req_id is required")
        for name, value in values.items():
            check_uint64(name, value)
            values[name] = int(value)
        self._cluster_id = values["cluster_id"]
        self._req_id = values["req_id"]
        self._model_id = values.get("model_id", 0)
        self._prefix_id = values.get("prefix_id", INVALID_ID)

    @property
    def cluster_id(self) -> int:
        """The peer to ask."""
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        """The same as cluster_id."""
        return self._cluster_id

    @property
    def req_id(self) -> int:
        """The request; 2**64-1 for none."""
        return self._req_id

    @property
    def model_id(self) -> int:
        """Keys of different models are different."""
        return self._model_id

    @property
    def prefix_id(self) -> int:
        """The prefix; 2**64-1 for none."""
        return self._prefix_id

    def __repr__(self) -> str:
        return (f"CacheKey(cluster_id={self._cluster_id}, req_id={self._req_id}, "
                f"model_id={self._model_id}, prefix_id={self._prefix_id})")


class CacheKeyByIdAndIndex:
    """A batch slot of a cache of a peer, by the cache's id there."""

    def __init__(self, cluster_id: int, cache_id: int, batch_index: int = 0) -> None:
        check_uint64("cluster_id", cluster_id)
        check_int64("cache_id", cache_id)
        check_uint32("batch_index", batch_index)
        self._cluster_id, self._cache_id = int(cluster_id), int(cache_id)
        self._batch_index = int(batch_index)

    @property
    def cluster_id(self) -> int:
        """The peer to ask."""
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        """The same as cluster_id."""
        return self._cluster_id

    @property
    def cache_id(self) -> int:
        """The cache's id at the peer."""
        return self._cache_id

    @property
    def batch_index(self) -> int:
        """The batch slot."""
        return self._batch_index

    def __repr__(self) -> str:
        return (f"CacheKeyByIdAndIndex(cluster_id={self._cluster_id}, cache_id={self._cache_id}, "
                f"batch_index={self._batch_index})")


class BlocksCacheKey:
    """A name for a whole cache of blocks: BlocksCacheKey(cluster_id, model_id=0).

    It stays until the cache is deallocated.
    """

    def __init__(self, *args: int, **kwargs: int) -> None:
        values = _key_values("BlocksCacheKey", ("cluster_id", "model_id"), args, kwargs)
        raise_if_false("cluster_id" in values, "cluster_id is required")
        for name, value in values.items():
            check_isinstance(name, value, int, allow_none=False)
            values[name] = int(value)
        self._cluster_id = values["cluster_id"]
        self._model_id = values.get("model_id", 0)

    @property
    def cluster_id(self) -> int:
        """The peer to ask."""
        return self._cluster_id

    @property
    def prompt_cluster_id(self) -> int:
        """The same as cluster_id."""
        return self._cluster_id

    @property
    def model_id(self) -> int:
        """Keys of different models are different."""
        return self._model_id

    def __repr__(self) -> str:
        return f"BlocksCacheKey(cluster_id={self._cluster_id}, model_id={self._model_id})"


# llm_key_kind of the C library.
_KEY_NONE, _KEY_REQUEST, _KEY_PREFIX, _KEY_BLOCKS = range(4)


def native_key(key: typing.Union[CacheKey, BlocksCacheKey]) -> typing.Tuple[int, int, int]:
    """Kind, id and model id, as C has them.  A key of padding is none."""
    if isinstance(key, BlocksCacheKey):
        return _KEY_BLOCKS, 0, key._model_id
    if key._prefix_id != INVALID_ID:
        return _KEY_PREFIX, key._prefix_id, key._model_id
    if key._req_id != INVALID_ID:
        return _KEY_REQUEST, key._req_id, key._model_id
    return _KEY_NONE, 0, 0


AnyKey = typing.Union[CacheKey, CacheKeyByIdAndIndex, BlocksCacheKey]

__all__ = ["AnyKey", "BlocksCacheKey", "CacheDesc", "CacheKey", "CacheKeyByIdAndIndex", "DataType",
           "FP8", "INVALID_ID", "LLMClusterInfo", "LLMException", "LLMRole", "MemInfo", "Memtype",
           "Placement", "RegisterMemStatus", "host_and_port", "ip_to_int", "ip_to_text",
           "kept_ip", "native_key", "stride", "view_dtype"]
