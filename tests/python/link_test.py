"""Links and roles."""

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

import llm_datadist as ld
from conftest import V2_OPTIONS, cluster_info, wait_for
from llm_datadist import LLMStatusCode, _core, _meeting
from options_test import refused
from transfer_test import PATIENT, own_cache

DESC = ld.CacheDesc(2, [4, 8], ld.DataType.DT_FLOAT)
PROMPT = {"ge.exec.deviceId": "0", "llm.listenIpInfo": "127.0.0.1:0"}
OK = LLMStatusCode.LLM_SUCCESS


def test_results_are_returned_and_not_raised(engines):
    prompts = [engines(ld.LLMRole.PROMPT, i, PROMPT) for i in (1, 2)]
    decoder = engines(ld.LLMRole.DECODER, 9)
    one, two = (cluster_info(p.cluster_id, p.listen_port()) for p in prompts)
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        dead = cluster_info(3, nobody.getsockname()[1])
        overall, codes = decoder.link_clusters([one, dead], 2000)
    # What failed is rolled back, the rest stays.
    assert overall == LLMStatusCode.LLM_LINK_FAILED
    assert codes[0] == OK and codes[1] in (LLMStatusCode.LLM_LINK_FAILED,
                                           LLMStatusCode.LLM_WAIT_PROCESS_TIMEOUT)
    assert decoder.links() == [1]
    overall, codes = decoder.link_clusters((one, two))
    assert codes == [LLMStatusCode.LLM_ALREADY_LINK, OK] and overall == codes[0]
    assert decoder.link_clusters([one] * 17)[0] == LLMStatusCode.LLM_CLUSTER_NUM_EXCEED_LIMIT
    assert prompts[0].link_clusters([two]) == (LLMStatusCode.LLM_PARAM_INVALID,
                                               [LLMStatusCode.LLM_PARAM_INVALID])
    # One that isn't linked doesn't spoil the whole.
    overall, codes = decoder.unlink_clusters([one, dead, two])
    assert overall == OK and codes == [OK, LLMStatusCode.LLM_NOT_YET_LINK, OK]
    wait_for(lambda: prompts[0].links() == [] and prompts[1].links() == [])


def test_v2_unlinks_whatever_the_local_list_says(pair_v2):
    one, two = pair_v2
    cluster = cluster_info(1, one.listen_port())
    cluster.append_local_ip_info("192.0.2.1", 1)
    assert two.unlink_clusters([cluster]) == (OK, [OK])
    assert two.links() == []


def test_force_ends_one_half(pair):
    prompt, decoder = pair
    cluster = cluster_info(1, prompt.listen_port())
    assert decoder.unlink_clusters([cluster], force=True)[0] == OK
    assert decoder.links() == []
    refused(lambda: decoder.check_link_status(1), LLMStatusCode.LLM_NOT_YET_LINK)
    # A stale half is replaced.
    assert decoder.link_clusters([cluster])[0] == OK and decoder.check_link_status(1) is None


def test_both_sides_may_have_the_same_id(engines):
    prompt, decoder = engines(ld.LLMRole.PROMPT, 0, PROMPT), engines(ld.LLMRole.DECODER, 0)
    assert decoder.link_clusters([cluster_info(0, prompt.listen_port())])[0] == OK
    source = prompt.kv_cache_manager.allocate_blocks_cache(DESC, ld.BlocksCacheKey(0))
    source.numpy(1)[2] = 6
    target = own_cache(decoder.kv_cache_manager, 2, [4, 8])
    decoder.kv_cache_manager.pull_blocks(ld.BlocksCacheKey(0), target, [2], [0])
    assert (target.numpy(1)[0] == 6).all()


def test_finalizing_with_links_is_safe(pair):
    prompt, decoder = pair
    target = own_cache(decoder.kv_cache_manager)
    prompt.finalize()
    with pytest.raises(ld.LLMException):
        decoder.kv_cache_manager.pull_blocks(ld.CacheKeyByIdAndIndex(1, 1), target, [0], [0])
    wait_for(lambda: decoder.link_info(1) is None or decoder.link_info(1)["state"] == "broken")


def test_v1_roles_are_strict(pair):
    prompt, decoder = (one.kv_cache_manager for one in pair)
    there, here = prompt.allocate_cache(DESC), decoder.allocate_cache(DESC)
    key = ld.CacheKeyByIdAndIndex(1, 1)
    for call in (lambda: prompt.pull_cache(key, there), lambda: prompt.pull_blocks(key, there, [0], [0]),
                 lambda: decoder.push_cache(key, here), lambda: decoder.push_blocks(key, here, [0], [0]),
                 lambda: decoder.remove_cache_key(ld.CacheKey(1, 1)),
                 lambda: decoder.allocate_cache(DESC, [ld.CacheKey(1, 1)]),
                 lambda: decoder.allocate_blocks_cache(DESC, ld.BlocksCacheKey(1)),
                 lambda: pair[0].check_link_status(2)):
        refused(call)
    prompt.allocate_blocks_cache(DESC, ld.BlocksCacheKey(1))
    refused(lambda: pair[1].switch_role(ld.LLMRole.MIX), LLMStatusCode.LLM_FEATURE_NOT_ENABLED)


def test_roles_change_without_links_only(engines):
    able = {"llm.EnableSwitchRole": "1"}
    prompt = engines(ld.LLMRole.PROMPT, 1, PROMPT)
    decoder = engines(ld.LLMRole.DECODER, 2, None, **able)
    cluster = cluster_info(1, prompt.listen_port())
    assert decoder.link_clusters([cluster])[0] == OK
    refused(lambda: decoder.switch_role(ld.LLMRole.MIX), LLMStatusCode.LLM_EXIST_LINK)
    assert decoder.unlink_clusters([cluster])[0] == OK
    cache = decoder.kv_cache_manager.allocate_cache(DESC)
    decoder.switch_role(ld.LLMRole.MIX)
    decoder.switch_role(ld.LLMRole.PROMPT, {"llm.listenIpInfo": "127.0.0.1:0"})
    assert (cache.numpy(0).shape, decoder.listen_port() > 0) == ((4, 8), True)  # caches stay
    other = engines(ld.LLMRole.DECODER, 3)
    assert other.link_clusters([cluster_info(2, decoder.listen_port())])[0] == OK


def test_v2_times_out_in_its_own_words(peers, engines):
    options = dict(V2_OPTIONS, **{"llm.Transports": "tcp"}, **PATIENT)
    peer = peers(role="PROMPT", cluster_id=1, shape=[4, 8], v2=True,
                 options=dict(options, **{"llm.listenIpInfo": "127.0.0.1:0"}))
    mine = engines(ld.LLMRole.DECODER, 2, dict(options, **{"llm.SyncKvCacheWaitTime": "100"}))
    assert mine.link_clusters([cluster_info(1, peer.info["port"])])[0] == 0
    cache = own_cache(mine.cache_manager, 4, [4, 8])
    key = ld.CacheKeyByIdAndIndex(1, peer.info["cache_id"])
    peer.stop()
    refused(lambda: mine.cache_manager.pull_blocks(key, cache, [1], [1]), LLMStatusCode.LLM_TIMEOUT)
    peer.go()
    # The link has outlived it.
    mine.cache_manager.pull_blocks(key, cache, [1], [1])
    assert (cache.numpy(3)[1] == 301).all()


def test_links_that_are_made_at_once_share_a_listener(engines, monkeypatch):
    mine, *others = (engines(ld.LLMRole.MIX, 11 + i, V2_OPTIONS) for i in range(3))
    entered, both = [], threading.Event()
    entry, set_role = ld.LLMDataDist._own_entry, _core.Engine.set_role

    def enter(datadist, *more):
        if datadist is mine:
            entered.append(1)
            if len(entered) == 2:
                both.set()
        return entry(datadist, *more)

    def listen(engine, *more):
        if engine is mine._engine:
            assert both.wait(10)
            entered.append("listens")
        set_role(engine, *more)

    monkeypatch.setattr(ld.LLMDataDist, "_own_entry", enter)
    monkeypatch.setattr(_core.Engine, "set_role", listen)
    table = json.dumps({"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": "1"}]}]})
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        comms = [pool.submit(one.link, f"to-{other.cluster_id}-{os.getpid()}",
                             {11: 0, other.cluster_id: 1}, table)
                 for other in others for one in (mine, other)]
        assert all(comm.result(20) > 0 for comm in comms)
    assert entered.count("listens") == 1 and sorted(mine.links()) == [12, 13]


def test_a_listener_that_moved_is_found(engines):
    mine = engines(ld.LLMRole.MIX, 11, V2_OPTIONS, **{"llm.listenIpInfo": "127.0.0.1:0"})
    mine.switch_role(ld.LLMRole.MIX, {"llm.listenIpInfo": "127.0.0.2:0"})
    other = engines(ld.LLMRole.MIX, 12, V2_OPTIONS)
    table = json.dumps({"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": "1"}]}]})
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        comms = [pool.submit(one.link, f"moved-{os.getpid()}", {11: 0, 12: 1}, table)
                 for one in (mine, other)]
        assert all(comm.result(20) > 0 for comm in comms)
    assert mine.links() == [12]


STRANGERS = [b"", b"{}\n", b"GET / HTTP/1.0\r\n", b"[" * 60000 + b"\n", b"\xff\n", b'{"rank": 1e999}\n']
PRETENDERS = [{"rank": 0}, {"rank": True}, {"rank": float("inf")}, {"cluster": 13}, {"cluster": 2**70},
              {"cluster": 12.0}, {"port": 0}, {"port": 2**16}, {"ip": "nowhere"}, {"ip": None},
              {"digest": "00"}]


@pytest.mark.parametrize("ours_hosts", [True, False])
def test_strangers_do_not_spoil_a_meeting(engines, ours_hosts):
    mine = engines(ld.LLMRole.MIX, 11, V2_OPTIONS)
    other = engines(ld.LLMRole.MIX, 12, V2_OPTIONS)
    table = json.dumps({"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": "1"}]}]})
    members = {11: 0, 12: 1} if ours_hosts else {12: 0, 11: 1}
    name = f"strangers-{ours_hosts}-{os.getpid()}"
    meeting = _meeting.Meeting(name, members, table, 11)
    digest, port = meeting.digest, meeting.ports[0]
    greeting = {"llm-datadist-link": digest.hex()}
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        if ours_hosts:
            comm = pool.submit(mine.link, name, members, table)
            wait_for(lambda: answers(port))
            good = {"digest": digest.hex(), "rank": 1, "cluster": 12, "ip": "127.0.0.1", "port": 1}
            for line in STRANGERS + [json.dumps(dict(good, **bad)).encode() + b"\n"
                                     for bad in PRETENDERS]:
                with socket.create_connection(("127.0.0.1", port), 10) as stranger:
                    stranger.sendall(line)
                    stranger.shutdown(socket.SHUT_WR)
                    while stranger.recv(4096):
                        pass
        else:
            with socket.create_server(("127.0.0.1", port)) as listener:
                listener.settimeout(10)
                comm = pool.submit(mine.link, name, members, table)
                for line in STRANGERS + [json.dumps(greeting).encode() + b"\n" + json.dumps(
                        [[0, [12, ["127.0.0.1", 1]]], [1, [11, bad]]]).encode() + b"\n"
                                         for bad in ({}, [], ["x", 1], ["127.0.0.1", 1e999], None)]:
                    with listener.accept()[0] as stranger:
                        stranger.sendall(line)
        theirs = pool.submit(other.link, name, members, table)
        assert comm.result(60) > 0 and theirs.result(60) > 0
    assert mine.links() == [12]


def answers(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def test_a_lost_member_fails_the_comm(peers, engines):
    table = json.dumps({"server_list": [{"device": [{"rank_id": "0"}, {"rank_id": "1"}]}]})
    members = {10: 0, 11: 1}
    other = peers(role="MIX", cluster_id=10, shape=[4, 8], v2=True, options=V2_OPTIONS)
    mine = engines(ld.LLMRole.MIX, 11, V2_OPTIONS)
    name = f"lost-{os.getpid()}"
    other.tell(what="link", name=name, members=list(members.items()), table=table)
    comm = mine.link(name, members, table)
    other.hear()
    assert mine.query_register_mem_status(comm) == ld.RegisterMemStatus.OK
    other.close()
    wait_for(lambda: mine.query_register_mem_status(comm) == ld.RegisterMemStatus.FAILED)
    mine.unlink(comm)
    assert mine.links() == []


def has_ipv6():
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.parametrize("listen,hosts", [("[::1]:0", ["::1", "[::1]"]), ("localhost:0", ["localhost"]),
                                          ("127.0.0.1:0", ["localhost", "127.0.0.1"])])
@pytest.mark.parametrize("v2", [False, True])
def test_links_by_ipv6_and_by_name(engines, listen, hosts, v2):
    if "::" in listen and not has_ipv6():
        pytest.skip("there is no IPv6")
    options = V2_OPTIONS if v2 else {"ge.exec.deviceId": "0"}
    prompt = engines(ld.LLMRole.PROMPT, 1, options, **{"llm.listenIpInfo": listen})
    decoder = engines(ld.LLMRole.DECODER, 2, options)
    for host in hosts:
        cluster = ld.LLMClusterInfo()
        cluster.remote_cluster_id = 1
        cluster.append_local_ip_info("::1" if "::" in listen else "127.0.0.1", 0)
        cluster.append_remote_ip_info(host, prompt.listen_port())
        assert decoder.link_clusters([cluster]) == (OK, [OK])
        assert decoder.unlink_clusters([cluster]) == (OK, [OK])


def test_cpu_caches():
    desc = ld.CacheDesc(2, [1, 4], ld.DataType.DT_FLOAT, ld.Placement.HOST)
    array = np.zeros((2, 4), np.float32)
    addrs = [array[0].ctypes.data, array[1].ctypes.data]
    for cls in (ld.KvCache, ld.Cache):
        cache = cls.create_cpu_cache(desc, addrs)
        assert cache.cache_id == -1
        cache.numpy(1)[:] = 3
        assert (array[1] == 3).all()
        for wrong, kind in (([], ld.LLMException), (addrs[:1], ld.LLMException),
                            ([addrs, addrs[0]], ld.LLMException), ([addrs[:1]], ld.LLMException),
                            (["1", "2"], TypeError), (None, TypeError), ([1, -1], ValueError)):
            with pytest.raises(kind):
                cls.create_cpu_cache(desc, wrong)
    assert ld.KvCache.create_cpu_cache(desc, [addrs]).per_device_tensor_addrs == [addrs]


def test_failures_are_logged_to_standard_output():
    environment = {key: value for key, value in os.environ.items() if key != "ASCEND_GLOBAL_LOG_LEVEL"}
    program = """if True:
        import llm_datadist as ld
        try:
            ld.CacheKey()
        except ld.LLMException:
            pass"""
    output = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True,
                            env=environment).stdout.splitlines()
    assert len(output) == 1 and "[ERROR] LLM_ENGINE" in output[0]


def test_what_the_library_has_told_is_not_told_again():
    program = """if True:
        import llm_datadist as ld
        engine = ld.LLMDataDist(ld.LLMRole.DECODER, 2)
        engine.init({"llm.DeviceId": "0"})
        cluster = ld.LLMClusterInfo()
        cluster.remote_cluster_id = 1
        cluster.append_local_ip_info("0.0.0.0", 0)
        cluster.append_remote_ip_info("127.0.0.1", 1)
        overall, _ = engine.link_clusters([cluster], 5000)
        assert overall == ld.LLMStatusCode.LLM_LINK_FAILED, overall
        try:
            engine.check_link_status(1)
        except ld.LLMException as error:
            assert error.status_code == ld.LLMStatusCode.LLM_NOT_YET_LINK
        engine.finalize()"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True,
                          env={**os.environ, "LLM_DATADIST_LOG_LEVEL": "warn"})
    lines = (done.stdout + done.stderr).splitlines()
    assert len([line for line in lines if "127.0.0.1:1" in line]) == 1, lines
    assert len([line for line in lines if "no link to cluster 1" in line]) == 1, lines
    assert len(lines) == 2, lines
