"""LLMConfig, and what options mean to the C library."""

import copy
import json
import typing

from ._check import (check_dict, check_int32, check_isinstance, check_uint32)
from ._status import LLMException, LLMStatusCode, raise_if_false
from ._types import host_and_port, ip_to_text, kept_ip

DEVICE_ID = "ge.exec.deviceId"
SESSION_DEVICE_ID = "ge.session_device_id"
POOL_SIZE = "ge.flowGraphMemMaxSize"
LISTEN_IP_INFO = "llm.listenIpInfo"
CLUSTER_INFO = "llm.ClusterInfo"
SYNC_WAIT_TIME = "llm.SyncKvCacheWaitTime"
BUF_POOL_CFG = "llm.BufPoolCfg"
MEM_POOL_CFG = "llm.MemPoolConfig"
HOST_MEM_POOL_CFG = "llm.HostMemPoolConfig"
ENABLE_SWITCH_ROLE = "llm.EnableSwitchRole"
ENABLE_CACHE_MANAGER = "llm.EnableCacheManager"
REMOTE_ACCESSIBLE = "llm.EnableRemoteCacheAccessible"
LOCAL_COMM_RES = "llm.LocalCommRes"
LINK_TOTAL_TIME = "llm.LinkTotalTime"
LINK_RETRY_COUNT = "llm.LinkRetryCount"
TRANSFER_BACKEND = "llm.TransferBackend"
GLOBAL_RESOURCE_CONFIG = "llm.GlobalResourceConfig"

# The C library's own names of two of them; programs for it may say so here too.
C_DEVICE_ID = "llm.DeviceId"
C_LISTEN_IP_INFO = "llm.ListenIpInfo"


def _json_object(name: str, text: str) -> typing.Dict[str, typing.Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise LLMException(f"{name} is not JSON: {error}", LLMStatusCode.LLM_PARAM_INVALID) from None
    raise_if_false(isinstance(value, dict), "{} must be a JSON object", name)
    return value


def _check_time(name: str, value: int) -> None:
    raise_if_false(0 <= value < 2**32, "{} {} must be in [0, 2**32)", name, value)


_UNNEEDED = "Accepted, and not needed here."

_Value = typing.TypeVar("_Value", str, int, bool)


class _Option(typing.Generic[_Value]):
    """A property of LLMConfig that is an option as it is."""

    def __init__(self, key: str, kind: typing.Type[_Value], doc: str,
                 check: typing.Optional[typing.Callable[[str, typing.Any], None]] = None) -> None:
        self._kind: typing.Type[_Value] = kind
        self._key, self._check, self._name = key, check, ""
        self.__doc__ = doc

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    @typing.overload
    def __get__(self, config: None, owner: type) -> "_Option[_Value]": ...

    @typing.overload
    def __get__(self, config: "LLMConfig", owner: type) -> typing.Optional[_Value]: ...

    def __get__(self, config: typing.Optional["LLMConfig"], owner: type) -> typing.Any:
        return self if config is None else config._options.get(self._key)

    def __set__(self, config: "LLMConfig", value: _Value) -> None:
        check_isinstance(self._name, value, self._kind, allow_none=False)
        if self._check is not None:
            self._check(self._name, value)
        config._options[self._key] = value if isinstance(value, (str, bool)) else int(value)


class LLMConfig:
    """Options with names and checks; `generate_options()` makes the dict that LLMDataDist.init takes.

        config = LLMConfig()
        config.device_id = 0
        config.listen_ip_info = "127.0.0.1:26000"
        datadist.init(config.generate_options())
    """

    deploy_res_path = _Option("llm.deployResPath", str, _UNNEEDED)
    output_max_size = _Option("llm.OutputMaxSize", int, _UNNEEDED)
    rdma_traffic_class = _Option("llm.RdmaTrafficClass", int, _UNNEEDED, check_uint32)
    rdma_service_level = _Option("llm.RdmaServiceLevel", int, _UNNEEDED, check_uint32)
    buf_pool_cfg = _Option(BUF_POOL_CFG, str, "v1: JSON with the tiers of the memory pool.")
    mem_pool_cfg = _Option(
        MEM_POOL_CFG, str,
        'v2: JSON, {"memory_size": bytes}, the pool of allocate_cache on the device.')
    host_mem_pool_cfg = _Option(
        HOST_MEM_POOL_CFG, str,
        'v2: JSON, {"memory_size": bytes}, the pool of allocate_cache on the host.')
    enable_switch_role = _Option(ENABLE_SWITCH_ROLE, bool, "Allows switch_role in v1 mode.")
    enable_cache_manager = _Option(ENABLE_CACHE_MANAGER, bool, "v2 mode.")
    enable_remote_cache_accessible = _Option(
        REMOTE_ACCESSIBLE, bool, "v2: caches may be pushed to, and are named by id.")
    local_comm_res = _Option(LOCAL_COMM_RES, str, "Asks for v2 mode, whatever it says.")
    link_total_time = _Option(
        LINK_TOTAL_TIME, int,
        "Seconds that link() waits for its members; 0: HCCL_CONNECT_TIMEOUT, or 120.", _check_time)

    def __init__(self) -> None:
        self._ge_options: typing.Dict[str, str] = {}
        self._device_id: typing.Union[None, int, typing.List[int], typing.Tuple[int, ...]] = None
        self._listen_ip_info: typing.Optional[str] = None
        self._mem_utilization = 0.95
        # Option -> value, in the order in which they were set.
        self._options: typing.Dict[str, typing.Any] = {}

    def __repr__(self) -> str:
        return f"LLMConfig({self.generate_options()})"

    def generate_options(self) -> typing.Dict[str, str]:
        """The options as strings.  `ge_options` come first, so that what was set here wins."""
        options = dict(self._ge_options)
        if self._device_id is not None:
            ids = list(self._device_id) if isinstance(self._device_id, (list, tuple)) else [self._device_id]
            options[DEVICE_ID] = ";".join(str(int(one)) for one in ids)
            if ids:
                options[SESSION_DEVICE_ID] = str(int(ids[0]))
        if self._listen_ip_info:
            options[LISTEN_IP_INFO] = self._listen_ip_info
        options["llm.MemoryUtilization"] = str(self._mem_utilization)
        for key, value in self._options.items():
            if value is None or (key == ENABLE_SWITCH_ROLE and not value):
                continue
            options[key] = str(int(value)) if isinstance(value, bool) else str(value)
        return options

    def gen_options(self) -> typing.Dict[str, str]:
        """The same as generate_options()."""
        return self.generate_options()

    @property
    def ge_options(self) -> typing.Dict[str, str]:
        """Options that are passed on as they are."""
        return self._ge_options

    @ge_options.setter
    def ge_options(self, ge_options: typing.Dict[str, str]) -> None:
        check_dict("ge_options", ge_options, str, str)
        self._ge_options = copy.copy(ge_options)

    @property
    def device_id(self) -> typing.Union[None, int, typing.List[int], typing.Tuple[int, ...]]:
        """The device, or several of them."""
        return self._device_id

    @device_id.setter
    def device_id(self, device_id: typing.Union[int, typing.List[int], typing.Tuple[int, ...]]
                  ) -> None:
        check_isinstance("device_id", device_id, [int, list, tuple], allow_none=False)
        ids = device_id if isinstance(device_id, (list, tuple)) else [device_id]
        for one in ids:
            check_int32("device_id", one)
            raise_if_false(one >= 0, "device_id {} must be 0 or more", one)
        self._device_id = device_id

    @property
    def listen_ip_info(self) -> typing.Optional[str]:
        """Where a prompt listens: "ip:port", one per device, separated by ";"."""
        return self._listen_ip_info

    @listen_ip_info.setter
    def listen_ip_info(self, listen_ip_info: str) -> None:
        check_isinstance("listen_ip_info", listen_ip_info, str, allow_none=False)
        self._listen_ip_info = listen_ip_info

    @property
    def sync_kv_timeout(self) -> typing.Union[None, int, str]:
        """The time limit of one call, in milliseconds; 1000 if not set."""
        return self._options.get(SYNC_WAIT_TIME)

    @sync_kv_timeout.setter
    def sync_kv_timeout(self, sync_kv_timeout: typing.Union[int, str]) -> None:
        check_isinstance("sync_kv_timeout", sync_kv_timeout, [int, str], allow_none=False)
        if isinstance(sync_kv_timeout, str):
            raise_if_false(sync_kv_timeout.isascii() and sync_kv_timeout.isdigit(),
                           "sync_kv_timeout {} must be digits", sync_kv_timeout)
        check_int32("sync_kv_timeout", int(sync_kv_timeout))
        raise_if_false(int(sync_kv_timeout) > 0, "sync_kv_timeout {} must be more than 0",
                       sync_kv_timeout)
        self._options[SYNC_WAIT_TIME] = sync_kv_timeout

    @property
    def cluster_info(self) -> typing.Optional[str]:
        """JSON: cluster_id, logic_device_id and listen_ip_info; made from the rest if not set."""
        return self._options.get(CLUSTER_INFO)

    @cluster_info.setter
    def cluster_info(self, cluster_info: str) -> None:
        check_isinstance("cluster_info", cluster_info, str, allow_none=False)
        value = _json_object("cluster_info", cluster_info)
        for address in value.get("listen_ip_info", []):
            if isinstance(address, dict) and isinstance(address.get("ip"), str):
                address["ip"] = kept_ip(address["ip"])
        self._options[CLUSTER_INFO] = json.dumps(value)

    @property
    def mem_utilization(self) -> float:
        """Accepted, and not needed here."""
        return self._mem_utilization

    @mem_utilization.setter
    def mem_utilization(self, mem_utilization: float) -> None:
        check_isinstance("mem_utilization", mem_utilization, float, allow_none=False)
        raise_if_false(0.0 <= mem_utilization <= 1.0, "mem_utilization {} must be in [0, 1]",
                       mem_utilization)
        self._mem_utilization = mem_utilization

    @property
    def link_retry_count(self) -> typing.Optional[int]:
        """Accepted, 1 to 100, and not needed here."""
        return self._options.get(LINK_RETRY_COUNT)

    @link_retry_count.setter
    def link_retry_count(self, link_retry_count: int) -> None:
        check_isinstance("link_retry_count", link_retry_count, int, allow_none=False)
        raise_if_false(1 <= link_retry_count <= 100, "link_retry_count {} must be in [1, 100]",
                       link_retry_count)
        self._options[LINK_RETRY_COUNT] = link_retry_count

    @property
    def transfer_backend(self) -> typing.Optional[str]:
        """"hixl", or not set."""
        return self._options.get(TRANSFER_BACKEND)

    @transfer_backend.setter
    def transfer_backend(self, transfer_backend: str) -> None:
        check_isinstance("transfer_backend", transfer_backend, str, allow_none=False)
        raise_if_false(transfer_backend == "hixl", "transfer_backend {} must be hixl",
                       transfer_backend)
        self._options[TRANSFER_BACKEND] = transfer_backend

    @property
    def global_resource_config(self) -> typing.Optional[str]:
        """JSON, for transfer_backend."""
        return self._options.get(GLOBAL_RESOURCE_CONFIG)

    @global_resource_config.setter
    def global_resource_config(self, global_resource_config: str) -> None:
        check_isinstance("global_resource_config", global_resource_config, str, allow_none=False)
        _json_object("global_resource_config", global_resource_config)
        self._options[GLOBAL_RESOURCE_CONFIG] = global_resource_config


LlmConfig = LLMConfig


class EngineOptions(typing.NamedTuple):
    """What LLMDataDist.init makes of an option dict, which it doesn't touch."""

    cache_manager: bool
    remote_accessible: bool
    num_devices: int
    listen: str
    has_local_comm_res: bool  # and it isn't empty
    device_pool: bool
    host_pool_bytes: int
    link_timeout_s: int
    hixl: bool
    native: typing.Dict[str, str]


# Options that are read here.  All others of this name space mean the same to the C library, or it says
# that they are unknown.
_READ_HERE = (C_DEVICE_ID, C_LISTEN_IP_INFO, LISTEN_IP_INFO, CLUSTER_INFO, BUF_POOL_CFG, MEM_POOL_CFG,
              HOST_MEM_POOL_CFG, ENABLE_CACHE_MANAGER, REMOTE_ACCESSIBLE, LINK_TOTAL_TIME,
              LINK_RETRY_COUNT)


def _pool_bytes(key: str, text: str) -> int:
    value = _json_object(key, text)
    size = value.get("memory_size")
    raise_if_false(isinstance(size, int) and size > 0, "{}: memory_size must be an int > 0", key)
    page_shift = value.get("page_shift", 16)
    raise_if_false(isinstance(page_shift, int) and page_shift > 0,
                   "{}: page_shift must be an int > 0", key)
    return typing.cast(int, size)


def _listen_text(options: typing.Dict[str, str], info: typing.Dict[str, typing.Any]) -> str:
    listen = options.get(LISTEN_IP_INFO, options.get(C_LISTEN_IP_INFO, ""))
    if not listen and info.get("listen_ip_info"):
        try:
            listen = ";".join(host_and_port(ip_to_text(kept_ip(one["ip"])), int(one["port"]))
                              for one in info["listen_ip_info"])
        except (KeyError, TypeError, ValueError, OverflowError):
            raise_if_false(False, "{}: listen_ip_info must be a list of ip and port", CLUSTER_INFO)
    return listen


def _v1_pool(options: typing.Dict[str, str], native: typing.Dict[str, str]) -> None:
    if BUF_POOL_CFG in options:
        native[BUF_POOL_CFG] = options[BUF_POOL_CFG]
    if POOL_SIZE not in options:
        return
    size = options[POOL_SIZE]
    raise_if_false("," not in size, "{}: only one pool is supported", POOL_SIZE)
    raise_if_false(size.isascii() and size.isdigit() and int(size) > 0,
                   "{} must be digits, but got {}", POOL_SIZE, size)
    value = _json_object(BUF_POOL_CFG, options.get(BUF_POOL_CFG, "{}"))
    value.setdefault("buf_pool_size", int(size))
    native[BUF_POOL_CFG] = json.dumps(value)


def read_options(options: typing.Dict[str, str], is_prompt: bool, environment: typing.Mapping[str, str]
                 ) -> EngineOptions:
    """Checks the rules of init that aren't the C library's, and translates."""
    check_dict("options", options, str, str)
    info = _json_object(CLUSTER_INFO, options[CLUSTER_INFO]) if CLUSTER_INFO in options else {}
    native = {key: value for key, value in options.items()
              if key.lower().startswith("llm.") and key not in _READ_HERE}

    native.setdefault("llm.Relink", "1")

    has_comm_res = LOCAL_COMM_RES in options
    cache_manager = options.get(ENABLE_CACHE_MANAGER, "1" if has_comm_res else "0") == "1"
    hixl = TRANSFER_BACKEND in options
    remote = options.get(REMOTE_ACCESSIBLE, "1" if has_comm_res or hixl else "0") == "1"
    raise_if_false(cache_manager or not has_comm_res, "{} requires {} to be 1", LOCAL_COMM_RES,
                   ENABLE_CACHE_MANAGER)
    raise_if_false(cache_manager or not hixl, "{} requires {} to be 1", TRANSFER_BACKEND,
                   ENABLE_CACHE_MANAGER)
    raise_if_false(remote or not hixl, "{} requires {} to be 1", TRANSFER_BACKEND, REMOTE_ACCESSIBLE)

    devices = options.get(DEVICE_ID, options.get(C_DEVICE_ID, ""))
    if not devices and isinstance(info.get("logic_device_id"), list):
        devices = ";".join(str(i) for i in range(len(info["logic_device_id"])))
    raise_if_false(devices, "{} is required", DEVICE_ID)
    native[C_DEVICE_ID] = devices
    num_devices = len(devices.split(";"))

    listen = _listen_text(options, info)
    num_addresses = len(listen.split(";")) if listen else 0
    raise_if_false(listen or not hixl, "{} requires {}", TRANSFER_BACKEND, LISTEN_IP_INFO)
    if cache_manager:
        raise_if_false(num_addresses <= 1, "{} must be one ip:port", LISTEN_IP_INFO)
        native.setdefault(LOCAL_COMM_RES, "")
    elif is_prompt:
        raise_if_false(listen, "{} is required for a prompt", LISTEN_IP_INFO)
        raise_if_false(num_addresses == num_devices,
                       "{} must have one ip:port per device, but has {} for {} devices",
                       LISTEN_IP_INFO, num_addresses, num_devices)
    if listen:
        native[C_LISTEN_IP_INFO] = listen

    device_pool, host_pool_bytes = not cache_manager, 0
    if not cache_manager:
        _v1_pool(options, native)
    elif MEM_POOL_CFG in options:
        device_pool = True
        native[BUF_POOL_CFG] = json.dumps(
            {"buf_pool_size": _pool_bytes(MEM_POOL_CFG, options[MEM_POOL_CFG])})
    if cache_manager and HOST_MEM_POOL_CFG in options:
        host_pool_bytes = _pool_bytes(HOST_MEM_POOL_CFG, options[HOST_MEM_POOL_CFG])

    link_time = options.get(LINK_TOTAL_TIME, "0")
    raise_if_false(link_time.isascii() and link_time.isdigit() and int(link_time) < 2**32,
                   "{} must be digits and less than 2**32, but got {}", LINK_TOTAL_TIME, link_time)
    fallback = environment.get("HCCL_CONNECT_TIMEOUT", "")
    is_time = fallback.isascii() and fallback.isdigit() and 0 < int(fallback) < 2**32
    link_timeout_s = int(link_time) or (int(fallback) if is_time else 120)

    return EngineOptions(cache_manager, remote, num_devices, listen,
                         bool(options.get(LOCAL_COMM_RES)), device_pool, host_pool_bytes,
                         link_timeout_s, hixl, native)
