"""What the tests share: engines that are finalized, and a peer in a process of its own."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

import llm_datadist as ld

V2_OPTIONS = {"ge.exec.deviceId": "0", "llm.EnableCacheManager": "1",
              "llm.EnableRemoteCacheAccessible": "1", "llm.LinkTotalTime": "20",
              "llm.MemPoolConfig": '{"memory_size": 100000000}',
              "llm.HostMemPoolConfig": '{"memory_size": 100000000}'}


def cluster_info(cluster_id, port):
    info = ld.LLMClusterInfo()
    info.remote_cluster_id = cluster_id
    info.append_local_ip_info("127.0.0.1", 0)
    info.append_remote_ip_info("127.0.0.1", port)
    return info


def rank_table(*servers, indent=None, **more):
    """Each server: its id (None: it has none) and the devices, (rank, device_ip) of each."""
    def entry(server_id, devices):
        device = [{"device_id": str(rank), "device_ip": ip, "rank_id": str(rank)} if ip is not None else
                  {"rank_id": str(rank)} for rank, ip in devices]
        return {"device": device} if server_id is None else {"device": device, "server_id": server_id}
    return json.dumps(dict(more, server_list=[entry(*server) for server in servers]), indent=indent)


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it didn't come true in time"
        time.sleep(0.005)


class Peer:
    """peer.py, started with these arguments; one line of JSON each way."""

    def __init__(self, **setup):
        here = os.path.dirname(os.path.abspath(__file__))
        self.process = subprocess.Popen([sys.executable, os.path.join(here, "peer.py")],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.info = self.ask(**setup)

    def ask(self, **question):
        self.tell(**question)
        return self.hear()

    def tell(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        assert line, "the peer has ended"
        return json.loads(line)

    def stop(self):
        """Does nothing any more until go() or close()."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitpid(self.process.pid, os.WUNTRACED)  # until it has

    def go(self):
        self.process.send_signal(signal.SIGCONT)

    def leave(self):
        """Ends in good order."""
        self.process.stdin.close()
        assert self.process.wait(20) == 0

    def close(self):
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.fixture
def peers():
    started = []

    def start(**setup):
        started.append(Peer(**setup))
        return started[-1]

    yield start
    for peer in started:
        peer.close()


@pytest.fixture
def engines():
    """engines(role, cluster_id, options): an initialized LLMDataDist."""
    made = []

    def make(role, cluster_id, options=None, **more):
        datadist = ld.LLMDataDist(role, cluster_id)
        made.append(datadist)
        datadist.init(dict(options or {"ge.exec.deviceId": "0"}, **more))
        return datadist

    yield make
    for datadist in reversed(made):
        datadist.finalize()


@pytest.fixture
def pair(engines):
    """A linked prompt (1) and decoder (2) of v1 in this process."""
    prompt = engines(ld.LLMRole.PROMPT, 1, {"ge.exec.deviceId": "0",
                                            "llm.listenIpInfo": "127.0.0.1:0"})
    decoder = engines(ld.LLMRole.DECODER, 2)
    overall, codes = decoder.link_clusters([cluster_info(1, prompt.listen_port())])
    assert overall == ld.LLMStatusCode.LLM_SUCCESS and codes == [overall]
    return prompt, decoder


@pytest.fixture
def pair_v2(engines):
    """A linked pair of v2 in this process; cluster 1 listens."""
    one = engines(ld.LLMRole.PROMPT, 1, V2_OPTIONS, **{"llm.listenIpInfo": "127.0.0.1:0"})
    two = engines(ld.LLMRole.DECODER, 2, V2_OPTIONS)
    assert two.link_clusters([cluster_info(1, one.listen_port())])[0] == 0
    return one, two
