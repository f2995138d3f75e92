"""What is checked before the engine is touched, and what options are made."""

import ast
import copy
import enum
import inspect
import json
import os
import pickle
import re
import subprocess
import sys
import typing

import numpy as np
import pytest

import llm_datadist as ld
import llm_datadist_v1
from conftest import V2_OPTIONS
from llm_datadist import LLMStatusCode, aio
from llm_datadist._config import read_options

U64 = 2**64 - 1


def refused(call, code=LLMStatusCode.LLM_PARAM_INVALID, text=None):
    with pytest.raises(ld.LLMException, match=text) as raised:
        call()
    assert raised.value.status_code == code


# ---- names ----

NAMES = """LLMDataDist LLMConfig LlmConfig LLMRole LLMStatusCode LLMException LLMClusterInfo CacheDesc
Cache KvCache CacheKey CacheKeyByIdAndIndex BlocksCacheKey KvCacheManager CacheManager
LayerSynchronizer TransferConfig TransferWithCacheKeyConfig CacheTask Tensor TensorDesc DataType
Placement Memtype MemInfo RegisterMemStatus Status""".split()


@pytest.mark.parametrize("name", NAMES)
def test_names_are_there_and_documented(name):
    value = getattr(ld, name)
    assert inspect.getdoc(value)
    assert name in ld.__all__ and name in dir(ld)
    if name not in ("Cache", "CacheManager"):
        assert getattr(llm_datadist_v1, name) is value


def test_public_methods_are_documented_and_typed():
    for cls in [getattr(ld, name) for name in NAMES] + [getattr(aio, name) for name in aio.__all__]:
        for name, member in inspect.getmembers(cls):
            ours = inspect.isroutine(member) and str(
                getattr(member, "__module__", None)).startswith("llm_datadist")
            if ours and not name.startswith("_"):
                assert member.__annotations__ and inspect.getdoc(member), f"{cls.__name__}.{name}"
            if isinstance(member, property):
                assert inspect.getdoc(member), f"{cls.__name__}.{name}"


def test_unknown_names():
    with pytest.raises(AttributeError, match="Module 'llm_datadist' has no attribute 'nothing'"):
        ld.nothing
    from llm_datadist_v1.kv_cache_manager import KvCacheManager
    assert KvCacheManager is ld.KvCacheManager and ld.LlmConfig is ld.LLMConfig


SUBMODULES = {
    "llm_datadist.status": "LLMException LLMStatusCode Status",
    "llm_datadist.configs": "LLMClusterInfo LLMConfig LLMRole LlmConfig",
    "llm_datadist.data_type": "DataType",
    "llm_datadist.utils.utils": "check_dict check_int32 check_int64 check_isinstance check_list_int32 "
                                "check_list_int64 check_list_uint64 check_positive_or_set_default "
                                "check_uint16 check_uint32 check_uint64 check_uint8",
    "llm_datadist.v2.llm_types": "BlocksCacheKey Cache CacheDesc CacheKey CacheKeyByIdAndIndex CacheTask "
                                 "DataType KvCache LayerSynchronizer MemInfo Memtype Placement "
                                 "RegisterMemStatus TransferConfig TransferWithCacheKeyConfig",
    "llm_datadist.v2.llm_datadist": "LLMDataDist",
    "llm_datadist.v2.cache_manager": "CacheManager",
    "llm_datadist_v1.kv_cache_manager": "KvCacheManager",
    "llm_datadist_v1.llm_datadist": "LLMDataDist",
    "llm_datadist_v1.tensor": "Tensor TensorDesc",
    "llm_datadist_v1.llm_utils": "layer_range_to_tensor_indices parse_listen_ip_info",
}
for here, there in (("status", "status"), ("configs", "configs"), ("data_type", "data_type"),
                    ("utils.utils", "utils.utils"), ("v2.llm_types", "llm_types")):
    SUBMODULES[f"llm_datadist_v1.{there}"] = SUBMODULES[f"llm_datadist.{here}"].replace(" Cache ", " ")


@pytest.mark.parametrize("path", sorted(SUBMODULES))
def test_modules_are_where_the_original_has_them(path):
    # In a process of its own, as the first import of a program.
    names = SUBMODULES[path].split()
    program = f"import {path} as m, llm_datadist as ld; " \
              f"print([n for n in {names} if getattr(m, n) is not getattr(ld, n, getattr(m, n))], *sorted(m.__all__))"
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert output.stdout.split() == ["[]"] + sorted(names)


def test_helpers_of_version_1():
    from llm_datadist_v1 import llm_utils
    assert llm_utils.parse_listen_ip_info("1.2.3.4:5") == ("1.2.3.4", 5)
    refused(lambda: llm_utils.parse_listen_ip_info("1.2.3.4"))
    assert llm_utils.layer_range_to_tensor_indices(range(1, 3), None) == ([2, 3, 4, 5], [])
    assert llm_utils.layer_range_to_tensor_indices(range(1), range(2, 3), 3) == ([0, 1, 2], [6, 7, 8])
    refused(lambda: llm_utils.layer_range_to_tensor_indices(range(0, 4, 2), None))


def test_enums():
    assert [int(role) for role in ld.LLMRole] == [1, 2, 3]
    assert (ld.Placement.HOST, ld.Placement.DEVICE) == (0, 1)
    assert (ld.Memtype.MEM_TYPE_DEVICE, ld.Memtype.MEM_TYPE_HOST) == (0, 1)
    assert [(s.name, s.value) for s in ld.RegisterMemStatus] == [("OK", 0), ("PREPARING", 1),
                                                                 ("FAILED", 2)]
    # The same with every version of Python, which differ in what they do with an IntEnum.
    for member in (LLMStatusCode.LLM_TIMEOUT, ld.LLMRole.MIX, ld.Placement.HOST,
                   ld.Memtype.MEM_TYPE_HOST, ld.RegisterMemStatus.OK, ld.DataType.DT_BOOL):
        text = f"{type(member).__name__}.{member.name}"
        assert str(member) == text and f"{member}" == text
    numbers = {0: "LLM_SUCCESS", 1: "LLM_WAIT_PROCESS_TIMEOUT", 2: "LLM_KV_CACHE_NOT_EXIST",
               5: "LLM_PARAM_INVALID", 7: "LLM_NOT_YET_LINK", 8: "LLM_ALREADY_LINK",
               17: "LLM_SEQ_LENOVERLIMIT", 21: "LLM_CACHE_KEY_EXIST", 24: "LLM_EXIST_LINK",
               25: "LLM_FEATURE_NOT_ENABLED", 26: "LLM_TIMEOUT", 27: "LLM_LINK_BUSY",
               28: "LLM_OUT_OF_MEMORY"}
    for number, name in numbers.items():
        assert LLMStatusCode[name] == (0x5010B000 + number if number else 0)
    assert LLMStatusCode.LLM_UNKNOWN_ERROR == -1
    types = {"DT_FLOAT": 0, "DT_FLOAT16": 1, "DT_BF16": 27, "DT_INT8": 2, "DT_INT16": 6,
             "DT_UINT16": 7, "DT_UINT8": 4, "DT_INT32": 3, "DT_INT64": 9, "DT_UINT32": 8,
             "DT_UINT64": 10, "DT_BOOL": 12, "DT_DOUBLE": 11, "DT_STRING": 13,
             # Of the C library: the original has no names for them in Python.
             "DT_HIFLOAT8": 34, "DT_FLOAT8_E5M2": 35, "DT_FLOAT8_E4M3FN": 36, "DT_FLOAT8_E8M0": 37}
    assert {t.name: t.value for t in ld.DataType} == types


ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def read_file(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def header():
    return read_file("include", "llm_datadist", "llm_datadist_c.h")


def test_the_conformance_document_names_tests():
    columns = re.findall(r"^\|.*\| (.*?) \|$", read_file("docs", "python-conformance.md"), re.M)
    named = [one for column in columns for one in re.findall(r"`(\w+)`: ([\w, ]+)", column)]
    assert len(named) > 80
    for file, tests in named:
        source = read_file("tests", "python", f"{file}_test.py")
        for test in tests.split(", "):
            assert f"def test_{test}(" in source, f"{file}: {test}"


def test_every_status_of_the_library_has_a_name():
    statuses = re.findall(r"X\((LLM_\w+), (0x\w+)u", header())
    assert len(statuses) > 30
    for name, number in statuses:
        code = LLMStatusCode(int(number, 16))
        # These are the original's names in Python.
        assert code.name == {"LLM_WAIT_PROC_TIMEOUT": "LLM_WAIT_PROCESS_TIMEOUT",
                             "LLM_SEQ_LEN_OVER_LIMIT": "LLM_SEQ_LENOVERLIMIT",
                             "LLM_CACHE_KEY_ALREADY_EXIST": "LLM_CACHE_KEY_EXIST"}.get(name, name)


def test_every_option_of_the_library_gets_there():
    keys = re.findall(r'#define LLM_OPTION_\w+ "(llm\.\w+)"', header())
    assert len(keys) > 10
    given = {"llm.DeviceId": "0", "llm.ListenIpInfo": "127.0.0.1:0", "llm.EnableCacheManager": "1"}
    options = read_options(dict({key: "{}" for key in keys}, **given), False, {}).native
    v1 = read_options(dict({key: "{}" for key in ("llm.BufPoolCfg",)}, **{"llm.DeviceId": "0"}), False,
                      {}).native
    assert set(keys) == set(options) | set(v1)


def test_exceptions():
    assert issubclass(ld.LLMException, RuntimeError)
    # Not success, as in the original.
    assert ld.LLMException("x").status_code == LLMStatusCode.LLM_FAILED
    assert ld.LLMException("x", LLMStatusCode.LLM_LINK_BUSY).retryable
    assert not ld.LLMException("x", LLMStatusCode.LLM_TIMEOUT).retryable
    assert ld.Status(LLMStatusCode.LLM_SUCCESS).is_ok()
    assert not ld.Status(LLMStatusCode.LLM_FAILED).is_ok()


# ---- arguments ----

DESC = ld.CacheDesc(2, [4, 8], ld.DataType.DT_FLOAT16)
FAMILIES = [
    (TypeError, "only support", lambda: ld.LLMDataDist("PROMPT", 1)),
    (TypeError, "only support", lambda: ld.LLMDataDist(ld.LLMRole.PROMPT, "1")),
    (TypeError, "only support", lambda: ld.LLMDataDist(ld.LLMRole.PROMPT, None)),
    (ValueError, "out of range", lambda: ld.LLMDataDist(ld.LLMRole.PROMPT, -1)),
    (ValueError, "out of range", lambda: ld.LLMDataDist(ld.LLMRole.PROMPT, 2**64)),
    (TypeError, "only support", lambda: ld.LLMDataDist(ld.LLMRole.PROMPT, 1).init(None)),
    (TypeError, "only support", lambda: ld.LLMDataDist(ld.LLMRole.PROMPT, 1).init({"a": 1})),
    (TypeError, "only support", lambda: ld.CacheDesc("2", [4], ld.DataType.DT_INT8)),
    (TypeError, "inner type only support", lambda: ld.CacheDesc(2, [4.0], ld.DataType.DT_INT8)),
    (TypeError, "only support", lambda: ld.CacheDesc(2, 4, ld.DataType.DT_INT8)),
    (TypeError, "only support", lambda: ld.CacheDesc(2, [4], 2)),
    (TypeError, "only support", lambda: ld.CacheDesc(2, [4], ld.DataType.DT_INT8, 1)),
    (ValueError, "out of range", lambda: ld.CacheDesc(-1, [4], ld.DataType.DT_INT8)),
    (ValueError, "out of range", lambda: ld.CacheDesc(1, [2**63], ld.DataType.DT_INT8)),
    (ld.LLMException, "batch_dim_index",
     lambda: ld.CacheDesc(1, [2], ld.DataType.DT_INT8, batch_dim_index=1)),
    (ld.LLMException, "seq_len_dim_index",
     lambda: ld.CacheDesc(1, [2], ld.DataType.DT_INT8, seq_len_dim_index=1)),
    (ld.LLMException, "size", lambda: ld.CacheDesc(1, [0], ld.DataType.DT_INT8).size),
    (ld.LLMException, "cluster_id is required", ld.CacheKey),
    (ld.LLMException, "req_id is required", lambda: ld.CacheKey(1)),
    (ld.LLMException, "at most 4", lambda: ld.CacheKey(1, 2, 3, 4, 5)),
    (ld.LLMException, "Unsupported param:nothing", lambda: ld.CacheKey(1, 2, nothing=3)),
    (TypeError, "only support", lambda: ld.CacheKey("1", 2)),
    (ValueError, "out of range", lambda: ld.CacheKey(1, -2)),
    (ld.LLMException, "cluster_id is required", ld.BlocksCacheKey),
    (ld.LLMException, "at most 2", lambda: ld.BlocksCacheKey(1, 2, 3)),
    (TypeError, "only support", lambda: ld.BlocksCacheKey("1")),
    (ValueError, "out of range", lambda: ld.CacheKeyByIdAndIndex(1, 1, -1)),
    (ValueError, "out of range", lambda: ld.CacheKeyByIdAndIndex(1, 2**63)),
    (TypeError, "only support", lambda: ld.MemInfo(0, 1, 1)),
    (TypeError, "only support", lambda: ld.LLMClusterInfo().append_local_ip_info(1.5, 0)),
    (ValueError, "out of range", lambda: ld.LLMClusterInfo().append_local_ip_info("1.2.3.4", 65536)),
    (RuntimeError, "Can not parse ip str", lambda: ld.LLMClusterInfo().append_remote_ip_info("x y", 1)),
    (TypeError, "only support", lambda: ld.TransferConfig(1, None)),
    (TypeError, "inner type", lambda: ld.TransferConfig(1, ["1"])),
    (ValueError, "out of range", lambda: ld.TransferConfig(1, [-1])),
    (TypeError, "only support", lambda: ld.TransferConfig(1, [1, 2], [0, 1])),
    (ld.LLMException, "step 1", lambda: ld.TransferConfig(1, [1, 2], range(0, 4, 2))),
    (ld.LLMException, "start < stop", lambda: ld.TransferConfig(1, [1, 2], range(1, 1))),
    (ValueError, "out of range", lambda: ld.TransferConfig(1, [1, 2], None, -1)),
    (TypeError, "only support",
     lambda: ld.TransferWithCacheKeyConfig(ld.CacheKey(1, 2), range(1), range(1))),
    (ld.LLMException, "same length", lambda: ld.TransferWithCacheKeyConfig(
        ld.BlocksCacheKey(1), range(1), range(2))),
    (ld.LLMException, "src_batch_index", lambda: ld.TransferWithCacheKeyConfig(
        ld.BlocksCacheKey(1), range(1), range(1), 1)),
    (ld.LLMException, "HOST", lambda: ld.KvCache.create_cpu_cache(DESC, [1, 2])),
]


@pytest.mark.parametrize("kind,text,call", FAMILIES)
def test_three_families_of_errors(kind, text, call):
    with pytest.raises(kind, match=text) as raised:
        call()
    assert type(raised.value) is kind


def test_before_init_and_after_finalize():
    datadist = ld.LLMDataDist(ld.LLMRole.DECODER, 1)
    datadist.finalize()
    for _ in range(2):
        for call in (lambda: datadist.kv_cache_manager, lambda: datadist.cache_manager,
                     lambda: datadist.link_clusters([ld.LLMClusterInfo()]),
                     lambda: datadist.check_link_status(1),
                     lambda: datadist.switch_role(ld.LLMRole.MIX)):
            with pytest.raises(RuntimeError, match="llm datadist is not initialized") as raised:
                call()
            assert type(raised.value) is RuntimeError
        datadist.init({"ge.exec.deviceId": "0"})
        manager = datadist.kv_cache_manager
        assert manager.is_initialized()
        datadist.init({})  # does nothing
        datadist.finalize()
        datadist.finalize()
        assert not manager.is_initialized()
        with pytest.raises(RuntimeError, match="not initialized"):
            manager.allocate_cache(DESC)


def test_cluster_info():
    info = ld.LLMClusterInfo()
    info.append_local_ip_info("1.2.3.4", 7)
    info.append_remote_ip_info(0x04030201, 65535)
    assert info.local_ip_info_list == [(0x04030201, 7)]
    assert info.remote_ip_info_list == [(0x04030201, 65535)]
    # IPv6 and names, which the original doesn't know, stay as they are.
    others = ["::1", "[::1]", "fe80::1%eth0", "prefill-0.svc.cluster.local", "localhost"]
    for other in others:
        info.append_remote_ip_info(other, 2)
    assert info.remote_ip_info_list[1:] == [(other, 2) for other in others]
    assert "'[fe80::1%eth0]:2'" in repr(info) and "'[::1]:2', '[::1]:2'" in repr(info)
    for wrong in ("1.2.3.4.5", "", "a b", "256.1.1.1", "\u00e9", "[", "x" * 256, "::1]:5"):
        with pytest.raises(RuntimeError, match="Can not parse ip str"):
            info.append_remote_ip_info(wrong, 2)
    with pytest.raises(ValueError):
        info.remote_cluster_id = -1
    info.remote_role_type = ld.LLMRole.PROMPT
    with pytest.raises(TypeError):
        info.remote_role_type = "prompt"


def test_cache_desc():
    shape = [4, 8]
    desc = ld.CacheDesc(2, shape, ld.DataType.DT_FLOAT16, batch_dim_index=1)
    assert desc.shape is shape and desc.size == 64 and desc.batch_size == 8 and desc.batch_dim == 1
    desc.update_dim(0, 5)
    assert shape == [5, 8] and desc.size == 80


def test_keys():
    for key in (ld.CacheKey(1, 2, 3, 4), ld.CacheKey(prompt_cluster_id=1, req_id=2, model_id=3,
                                                     prefix_id=4)):
        assert (key.cluster_id, key.prompt_cluster_id, key.req_id, key.model_id,
                key.prefix_id) == (1, 1, 2, 3, 4)
        assert repr(key) == "CacheKey(cluster_id=1, req_id=2, model_id=3, prefix_id=4)"
    assert ld.CacheKey(1, 2).prefix_id == U64
    assert ld.CacheKey(1, 2) != ld.CacheKey(1, 2)
    key = ld.BlocksCacheKey(prompt_cluster_id=5)
    assert (key.cluster_id, key.prompt_cluster_id, key.model_id) == (5, 5, 0)
    with pytest.raises(ld.LLMException):
        ld.CacheKey(1, cluster_id=1, req_id=2)


def test_properties_of_a_transfer_are_set_with_the_same_checks():
    config = ld.TransferWithCacheKeyConfig(ld.CacheKeyByIdAndIndex(1, 2), range(1), range(1))
    config.src_layer_range, config.dst_layer_range = range(1, 3), range(2, 4)
    config.src_batch_index = 3
    refused(lambda: setattr(config, "src_layer_range", range(0)))
    refused(lambda: setattr(config, "dst_layer_range", range(0, 4, 2)))
    for name, wrong in (("cache_key", ld.CacheKey(1, 2)), ("cache_key", None), ("src_layer_range", None),
                        ("dst_layer_range", [1]), ("src_batch_index", "1")):
        with pytest.raises(TypeError):
            setattr(config, name, wrong)
    with pytest.raises(ValueError):
        config.src_batch_index = -1
    assert (config.src_layer_range, config.dst_layer_range, config.src_batch_index) == (
        range(1, 3), range(2, 4), 3)
    config.src_batch_index, config.cache_key = 0, ld.BlocksCacheKey(7)
    assert config.cache_key.cluster_id == 7
    refused(lambda: setattr(config, "src_batch_index", 1))


@pytest.mark.parametrize("kind", [np.int32, np.int64, np.uint64])
def test_integers_of_numpy_are_integers(kind, engines):
    one, two = kind(1), kind(2)
    keys = (ld.CacheKey(one, two), ld.BlocksCacheKey(one, two), ld.CacheKeyByIdAndIndex(one, two, one))
    assert [repr(key) for key in keys] == [
        "CacheKey(cluster_id=1, req_id=2, model_id=0, prefix_id=18446744073709551615)",
        "BlocksCacheKey(cluster_id=1, model_id=2)",
        "CacheKeyByIdAndIndex(cluster_id=1, cache_id=2, batch_index=1)"]
    config = ld.LLMConfig()
    config.device_id, config.link_total_time, config.sync_kv_timeout = one, two, two
    assert config.generate_options() == {
        "ge.exec.deviceId": "1", "ge.session_device_id": "1", "llm.MemoryUtilization": "0.95",
        "llm.LinkTotalTime": "2", "llm.SyncKvCacheWaitTime": "2"}
    config.device_id = [one, two]
    assert config.generate_options()["ge.exec.deviceId"] == "1;2"
    info = ld.LLMClusterInfo()
    info.remote_cluster_id = two
    info.append_remote_ip_info(kind(0x04030201), two)
    assert info.remote_ip_info_list == [(0x04030201, 2)] and type(info.remote_cluster_id) is int
    desc = ld.CacheDesc(two, [kind(4), kind(8)], ld.DataType.DT_FLOAT)
    assert (desc.size, desc.batch_size) == (128, 4)
    mine = engines(ld.LLMRole.DECODER, two)
    cache = mine.kv_cache_manager.allocate_cache(desc)
    assert cache.numpy(one).shape == (4, 8) and type(mine.cluster_id) is int
    cache.numpy(0)[0], cache.numpy(0)[1] = 5, 0
    mine.kv_cache_manager.copy_cache(cache, cache, one, kind(0), kind(0), kind(16))
    assert cache.numpy(0)[1].tolist() == [5] * 4 + [0] * 4
    mine.kv_cache_manager.copy_blocks(cache, {kind(0): [kind(3)]})
    assert cache.numpy(0)[3].tolist() == [5] * 8
    with pytest.raises(ValueError):
        ld.CacheKeyByIdAndIndex(1, 1, kind(2**32) if kind is np.uint64 else kind(-1))
    for wrong in (np.float64(1), np.bool_(True), "1"):
        with pytest.raises(TypeError):
            ld.CacheKeyByIdAndIndex(1, wrong)


def test_objects_say_what_they_are(engines):
    config = ld.LLMConfig()
    config.listen_ip_info = "127.0.0.1:0"
    assert repr(config) == ("LLMConfig({'llm.listenIpInfo': '127.0.0.1:0', "
                            "'llm.MemoryUtilization': '0.95'})")
    assert repr(ld.TransferConfig(1, [16, 32], range(1))) == (
        "TransferConfig(dst_cluster_id=1, dst_addrs=['0x10', '0x20'], src_layer_range=range(0, 1), "
        "src_batch_index=0)")
    assert repr(ld.TransferWithCacheKeyConfig(ld.BlocksCacheKey(1), range(1), range(2, 3))) == (
        "TransferWithCacheKeyConfig(cache_key=BlocksCacheKey(cluster_id=1, model_id=0), "
        "src_layer_range=range(0, 1), dst_layer_range=range(2, 3), src_batch_index=0)")
    mine = ld.LLMDataDist(ld.LLMRole.MIX, 7)
    assert repr(mine) == "LLMDataDist(LLMRole.MIX, cluster 7, not initialized)"
    mine = engines(ld.LLMRole.MIX, 7, V2_OPTIONS, **{"llm.listenIpInfo": "127.0.0.1:0"})
    assert repr(mine) == "LLMDataDist(LLMRole.MIX, cluster 7, v2, listens at 127.0.0.1:0, links to [])"
    assert repr(mine.cache_manager) == "CacheManager(cluster 7, LLMRole.MIX)"


def fields(value):
    return {key: fields(one) if hasattr(one, "__dict__") and not isinstance(one, enum.Enum) else one
            for key, one in vars(value).items()}


@pytest.mark.parametrize("copied", [lambda one: pickle.loads(pickle.dumps(one)), copy.deepcopy,
                                    copy.copy])
def test_descriptions_travel(copied):
    info = ld.LLMClusterInfo()
    info.remote_cluster_id = 3
    info.append_remote_ip_info("1.2.3.4", 5)
    config = ld.LLMConfig()
    config.enable_cache_manager = True
    for one in (info, config, DESC, ld.CacheKey(1, 2), ld.BlocksCacheKey(1, 2),
                ld.CacheKeyByIdAndIndex(1, 2, 3), ld.TransferConfig(1, [2, 3], range(1)),
                ld.TransferWithCacheKeyConfig(ld.BlocksCacheKey(1), range(1), range(1)),
                ld.MemInfo(ld.Memtype.MEM_TYPE_DEVICE, 1, 2), ld.Status(LLMStatusCode.LLM_FAILED),
                ld.TensorDesc(ld.DataType.DT_BF16, [1])):
        other = copied(one)
        assert other is not one and type(other) is type(one) and fields(other) == fields(one)
    error = copied(ld.LLMException("why", LLMStatusCode.LLM_LINK_BUSY))
    assert str(error) == "why" and error.status_code is LLMStatusCode.LLM_LINK_BUSY
    tensor = ld.Tensor(np.array([[1.5]], np.float32))
    other = copied(tensor)
    assert other.numpy().tolist() == [[1.5]] and other.handle != tensor.handle
    assert np.shares_memory(ld.Tensor(other.handle).numpy(), other.numpy())


# ---- LLMConfig ----

CONFIG = [
    ("device_id", 3, {"ge.exec.deviceId": "3", "ge.session_device_id": "3"}),
    ("device_id", [0, 1], {"ge.exec.deviceId": "0;1", "ge.session_device_id": "0"}),
    ("device_id", (2,), {"ge.exec.deviceId": "2", "ge.session_device_id": "2"}),
    ("listen_ip_info", "1.2.3.4:5", {"llm.listenIpInfo": "1.2.3.4:5"}),
    ("listen_ip_info", "", {}),
    ("sync_kv_timeout", 5, {"llm.SyncKvCacheWaitTime": "5"}),
    ("sync_kv_timeout", "7", {"llm.SyncKvCacheWaitTime": "7"}),
    ("deploy_res_path", "/p", {"llm.deployResPath": "/p"}),
    ("cluster_info", '{"listen_ip_info":[{"ip":"1.2.3.4","port":1}]}',
     {"llm.ClusterInfo": '{"listen_ip_info": [{"ip": 67305985, "port": 1}]}'}),
    ("output_max_size", 9, {"llm.OutputMaxSize": "9"}),
    ("output_max_size", 2**40, {"llm.OutputMaxSize": str(2**40)}),
    ("mem_utilization", 0.5, {"llm.MemoryUtilization": "0.5"}),
    ("buf_pool_cfg", "{}", {"llm.BufPoolCfg": "{}"}),
    ("mem_pool_cfg", "{}", {"llm.MemPoolConfig": "{}"}),
    ("host_mem_pool_cfg", "{}", {"llm.HostMemPoolConfig": "{}"}),
    ("enable_switch_role", True, {"llm.EnableSwitchRole": "1"}),
    ("enable_switch_role", False, {}),
    ("enable_cache_manager", True, {"llm.EnableCacheManager": "1"}),
    ("enable_cache_manager", False, {"llm.EnableCacheManager": "0"}),
    ("enable_remote_cache_accessible", False, {"llm.EnableRemoteCacheAccessible": "0"}),
    ("rdma_traffic_class", 1, {"llm.RdmaTrafficClass": "1"}),
    ("rdma_service_level", 0, {"llm.RdmaServiceLevel": "0"}),
    ("local_comm_res", "", {"llm.LocalCommRes": ""}),
    ("link_total_time", 0, {"llm.LinkTotalTime": "0"}),
    ("link_retry_count", 100, {"llm.LinkRetryCount": "100"}),
    ("transfer_backend", "hixl", {"llm.TransferBackend": "hixl"}),
    ("global_resource_config", "{}", {"llm.GlobalResourceConfig": "{}"}),
]


@pytest.mark.parametrize("name,value,expected", CONFIG)
def test_config_makes_options(name, value, expected):
    config = ld.LLMConfig()
    config.ge_options = {"a": "b", "ge.exec.deviceId": "9"}
    setattr(config, name, value)
    options = config.generate_options()
    assert options == config.gen_options()
    default = {"a": "b", "ge.exec.deviceId": "9", "llm.MemoryUtilization": "0.95"}
    assert options == dict(default, **expected)
    options["c"] = "d"
    assert "c" not in config.generate_options()


BAD_CONFIG = [
    ("device_id", "0", TypeError), ("device_id", -1, ld.LLMException),
    ("device_id", [0, 2**31], ValueError), ("device_id", ["0"], TypeError),
    ("listen_ip_info", 1, TypeError), ("sync_kv_timeout", 0, ld.LLMException),
    ("sync_kv_timeout", 2**31, ValueError), ("sync_kv_timeout", "x", ld.LLMException),
    ("sync_kv_timeout", 1.5, TypeError), ("ge_options", {"a": 1}, TypeError),
    ("mem_utilization", 1.1, ld.LLMException), ("mem_utilization", "1", TypeError),
    ("cluster_info", "x", ld.LLMException), ("cluster_info", 1, TypeError),
    ("cluster_info", '{"listen_ip_info":[{"ip":"x y","port":1}]}', RuntimeError),
    ("enable_switch_role", 1, TypeError), ("enable_cache_manager", "1", TypeError),
    ("rdma_traffic_class", -1, ValueError), ("local_comm_res", None, TypeError),
    ("link_total_time", 2**32, ld.LLMException),
    ("link_total_time", -1, ld.LLMException), ("link_retry_count", 0, ld.LLMException),
    ("link_retry_count", 101, ld.LLMException), ("transfer_backend", "x", ld.LLMException),
    ("global_resource_config", "x", ld.LLMException), ("output_max_size", "1", TypeError),
]


@pytest.mark.parametrize("name,value,kind", BAD_CONFIG)
def test_config_refuses(name, value, kind):
    with pytest.raises(kind) as raised:
        setattr(ld.LLMConfig(), name, value)
    assert type(raised.value) is kind


def test_type_checkers_see_the_properties():
    tree = ast.parse(inspect.getsource(ld.LLMConfig))
    seen = set()
    for node in tree.body[0].body:
        seen |= {node.name} if isinstance(node, ast.FunctionDef) else {
            target.id for target in getattr(node, "targets", ())}
    assert {name for name, *_ in CONFIG} <= seen
    assert all(inspect.getdoc(getattr(ld.LLMConfig, name)) for name, *_ in CONFIG)
    for cls in (ld.LLMDataDist, ld.Cache, ld.KvCache):
        hints = typing.get_type_hints(cls.__enter__, {"Engine": None})
        assert hints["return"] is hints["self"]


# ---- what init makes of options ----

def read(is_prompt=False, **options):
    return read_options({"ge.exec.deviceId": "0", **options}, is_prompt, {})


def test_a_misspelt_option_is_named():
    program = """if True:
        import llm_datadist as ld
        with ld.LLMDataDist(ld.LLMRole.DECODER, 1) as mine:
            mine.init({"ge.exec.deviceId": "0", "llm.Cheksum": "crc32c", "llm.Nonsense": "1",
                       "llm.MemoryUtilization": "0.95", "llm.LinkRetryCount": "1", "ge.whatever": "1",
                       "llm.EnableCacheManager": "0", "llm.deployResPath": "/", "llm.Role": "Decoder"})"""
    environment = dict(os.environ, LLM_DATADIST_LOG_LEVEL="warn")
    lines = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True,
                           env=environment).stderr.splitlines()
    assert len(lines) == 2
    assert "llm.Cheksum is unknown and ignored: did you mean llm.Checksum?" in lines[0]
    assert "llm.Nonsense is unknown and ignored" in lines[1]


def test_modes():
    assert not read().cache_manager
    assert not read(**{"llm.EnableCacheManager": "0"}).cache_manager
    assert read(**{"llm.EnableCacheManager": "1"}).cache_manager
    assert not read(**{"llm.EnableCacheManager": "1"}).remote_accessible
    by_comm_res = read(**{"llm.LocalCommRes": ""})
    assert by_comm_res.cache_manager and by_comm_res.remote_accessible
    hixl = {"llm.EnableCacheManager": "1", "llm.TransferBackend": "hixl"}
    assert read(**hixl, **{"llm.listenIpInfo": "1.2.3.4:5"}).remote_accessible
    for options in ({"llm.LocalCommRes": "", "llm.EnableCacheManager": "0"}, hixl,
                    {"llm.TransferBackend": "hixl", "llm.listenIpInfo": "1.2.3.4:5"},
                    dict(hixl, **{"llm.EnableRemoteCacheAccessible": "0",
                                  "llm.listenIpInfo": "1.2.3.4:5"})):
        refused(lambda options=options: read(**options))


def test_link_total_time():
    assert read(**{"llm.LinkTotalTime": "7"}).link_timeout_s == 7
    assert read(**{"llm.LinkTotalTime": "0"}).link_timeout_s == 120
    for text in ("x", "-1", "", "1.5", str(2**32)):
        refused(lambda text=text: read(**{"llm.LinkTotalTime": text}), text="LinkTotalTime")
    for text, seconds in (("600", 600), ("x", 120), ("\u00b2", 120), ("0", 120), ("9" * 30, 120)):
        assert read_options({"ge.exec.deviceId": "0"}, False,
                            {"HCCL_CONNECT_TIMEOUT": text}).link_timeout_s == seconds


def test_v1_options():
    refused(lambda: read_options({}, False, {}), text="ge.exec.deviceId")
    refused(lambda: read(True), text="llm.listenIpInfo")
    refused(lambda: read(True, **{"llm.listenIpInfo": "1.2.3.4:5;1.2.3.4:6"}))
    assert read(True, **{"llm.listenIpInfo": "1.2.3.4:5"}).native["llm.ListenIpInfo"] == "1.2.3.4:5"
    info = json.dumps({"logic_device_id": ["0:0:0:0", "0:0:1:0"],
                       "listen_ip_info": [{"ip": 67305985, "port": 1}, {"ip": "1.2.3.4", "port": 2}]})
    made = read_options({"llm.ClusterInfo": info}, True, {})
    assert made.num_devices == 2 and made.native["llm.DeviceId"] == "0;1"
    assert made.listen == "1.2.3.4:1;1.2.3.4:2"
    for one in ("5", '[{"ip": 1}]', '[{"ip": -1, "port": 1}]', '[{"ip": 1, "port": 1e999}]'):
        info = f'{{"listen_ip_info": {one}}}'
        refused(lambda info=info: read(True, **{"llm.ClusterInfo": info}), text="list of ip and port")
    refused(lambda: read(**{"llm.ClusterInfo": "[" * 100000}), text="is not JSON")
    pool = read(**{"ge.flowGraphMemMaxSize": "4096"}).native["llm.BufPoolCfg"]
    assert json.loads(pool) == {"buf_pool_size": 4096}
    for size in ("1,2", "x", "", "-1"):
        refused(lambda size=size: read(**{"ge.flowGraphMemMaxSize": size}))


def test_init_does_not_touch_the_callers_options(engines):
    options = {"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"}
    before = dict(options)
    engines(ld.LLMRole.PROMPT, 1, options)
    assert options == before


def test_a_refused_option_leaves_the_instance_as_it_was():
    datadist = ld.LLMDataDist(ld.LLMRole.DECODER, 1)
    refused(lambda: datadist.init({"ge.exec.deviceId": "0", "llm.SyncKvCacheWaitTime": "x"}))
    with datadist:
        datadist.init({"ge.exec.deviceId": "0"})


def test_each_mode_refuses_the_others_manager(engines):
    one, two = engines(ld.LLMRole.DECODER, 1), engines(ld.LLMRole.DECODER, 2, V2_OPTIONS)
    refused(lambda: one.cache_manager)
    refused(lambda: two.kv_cache_manager)
    refused(lambda: two.check_link_status(1))
    refused(lambda: one.link("x", {1: 0, 2: 1}, "{}"))


def test_switch_role(engines):
    plain = engines(ld.LLMRole.DECODER, 1)
    refused(lambda: plain.switch_role(ld.LLMRole.DECODER))
    refused(lambda: plain.switch_role(ld.LLMRole.PROMPT), text="listenIpInfo")
    refused(lambda: plain.switch_role(ld.LLMRole.MIX), LLMStatusCode.LLM_FEATURE_NOT_ENABLED)
    able = engines(ld.LLMRole.DECODER, 2, None, **{"llm.EnableSwitchRole": "1"})
    able.switch_role(ld.LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:0"})
    assert able.role is ld.LLMRole.PROMPT and able.listen_port() > 0
    v2 = engines(ld.LLMRole.DECODER, 3, V2_OPTIONS)
    v2.switch_role(ld.LLMRole.DECODER, {"llm.listenIpInfo": "127.0.0.1:0"})
    assert v2.listen_port() > 0
    v2.switch_role(ld.LLMRole.DECODER)
    with pytest.raises(ld.LLMException):
        v2.listen_port()


def test_link_arguments(engines):
    mine = engines(ld.LLMRole.MIX, 1, V2_OPTIONS)
    for members, table, kind in (({1: 0}, "{}", ld.LLMException), ({1: 1, 2: 0}, "{}", ld.LLMException),
                                 ({2: 0, 3: 1}, "{}", ld.LLMException), ({1: 0, 2: 1}, "{}",
                                                                         ld.LLMException),
                                 ({1: 0, 2: "1"}, "{}", TypeError), ({1: 0, 2: -1}, "{}", ValueError),
                                 ({1: 0, 2: 1}, 1, TypeError)):
        with pytest.raises(kind):
            mine.link("name", members, table)
    with pytest.raises(ld.LLMException):
        mine.link("x" * 128, {1: 0, 2: 1}, "{}")
    with pytest.raises(TypeError):
        mine.link_clusters(ld.LLMClusterInfo())
    refused(lambda: mine.link_clusters([ld.LLMClusterInfo()]))
    refused(lambda: mine.link_clusters([], timeout=0))


# ---- tensors ----

def test_tensors_keep_their_shape():
    data = np.arange(24, dtype=np.float16).reshape(2, 3, 4)
    tensor = ld.Tensor(data)
    assert tensor.tensor_desc.dtype is ld.DataType.DT_FLOAT16
    assert (tensor.numpy() == data).all() and tensor.numpy().shape == (2, 3, 4)
    assert not tensor.numpy().flags.writeable and tensor.numpy(copy=True).flags.writeable
    bf16 = ld.Tensor(np.array([[0x3FC0]], dtype=np.uint16).view(np.float16),
                     ld.TensorDesc(ld.DataType.DT_BF16, (1, 1)))
    assert bf16.numpy().dtype == np.float32 and bf16.numpy().tolist() == [[1.5]]
    assert (ld.Tensor(tensor).numpy() == data).all()
    assert np.shares_memory(ld.Tensor(tensor.handle).numpy(), tensor.numpy())
    text = ld.Tensor(np.array(["a", "bc"]))
    assert text.tensor_desc.dtype is ld.DataType.DT_STRING
    assert text.numpy(copy=True).tolist() == ["a", "bc"]


@pytest.mark.parametrize("call", [
    lambda: ld.Tensor(np.array(["a"])).numpy(),
    lambda: ld.Tensor(np.zeros(2, np.complex64)),
    lambda: ld.Tensor(np.zeros((2, 2))[:, 0]),
    lambda: ld.Tensor(np.zeros(2), ld.TensorDesc(ld.DataType.DT_DOUBLE, [3])),
    lambda: ld.Tensor(np.zeros(2), ld.TensorDesc(ld.DataType.DT_FLOAT, [2])),
    lambda: ld.Tensor(10**9)])
def test_tensors_refuse(call):
    with pytest.raises(RuntimeError) as raised:
        call()
    assert type(raised.value) is RuntimeError


def test_a_copy_is_asked_for_with_a_bool():
    for wrong in ("x", 1, None):
        with pytest.raises(TypeError, match="copy only support bool"):
            ld.Tensor(np.zeros(2)).numpy(copy=wrong)


def test_a_forgotten_instance_lives_as_long_as_the_process():
    code = ("import gc, llm_datadist as ld\n"
            "def make():\n"
            "    d = ld.LLMDataDist(ld.LLMRole.DECODER, 1)\n"
            "    d.init({'ge.exec.deviceId': '0'})\n"
            "    return d.kv_cache_manager.allocate_cache(ld.CacheDesc(1, [4], ld.DataType.DT_INT8))\n"
            "view = make().numpy(0)\n"
            "gc.collect()\n"
            "view[:] = 7\n"
            "print(view.sum())")
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (0, "28\n")


def test_a_forgotten_instance_is_finalized_at_exit():
    code = ("import llm_datadist as ld; d = ld.LLMDataDist(ld.LLMRole.DECODER, 1); "
            "d.init({'ge.exec.deviceId': '0'}); "
            "c = d.kv_cache_manager.allocate_cache(ld.CacheDesc(1, [1], ld.DataType.DT_INT8))")
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
