"""Connectors that link by rank table: one pair per prefill and decode worker, each with its own text."""

import json

import pytest

from conftest import values_of, wait_for

PREFILL, DECODE = 1001, 2001
NAME = "pd_comm_127.0.0.11_127.0.0.12"
MEMBERS = [[PREFILL, 0], [DECODE, 1]]


def device(rank, ip):
    return {"device_id": str(rank), "device_ip": ip, "super_device_id": str(4096 + rank),
            "rank_id": str(rank)}


def two_servers(first, ids=("server-a", "server-b"), **more):
    """The member with rank `first` puts itself first."""
    servers = [{"device": [device(0, "127.0.0.11")], "server_id": ids[0]},
               {"device": [device(1, "127.0.0.12")], "server_id": ids[1]}]
    table = {"version": "1.2", "server_count": "2", "status": "completed",
             "server_list": servers if first == 0 else servers[::-1],
             "super_pod_list": [{"super_pod_id": "0", "server_list": [{"server_id": one} for one in ids]}]}
    return json.dumps(table, **more)


def one_server(first):
    devices = [device(0, "192.0.2.11"), device(1, "192.0.2.12")]
    return json.dumps({"version": "1.0", "server_count": "1", "status": "completed", "server_list": [
        {"server_id": "10.1.2.3", "device": devices if first == 0 else devices[::-1]}]})


TABLES = {
    "same text": (two_servers(0), two_servers(0)),
    "itself first": (two_servers(0), two_servers(1)),
    "white space": (two_servers(0, indent=4), two_servers(1, separators=(",", ":"))),
    "key order": (two_servers(0, sort_keys=True), two_servers(1)),
    "numbers for names": (two_servers(0, ids=("1", "2")), two_servers(1, ids=("1", "2"))),
    "one server, addresses of devices that aren't here": (one_server(0), one_server(1)),
}


def connect(prefill, decode, tables, name=NAME, members=None):
    """Each is told by the other that it wants to link, and calls."""
    prefill.tell("link", name, members or MEMBERS, tables[0])
    assert decode.ask("link", name, members or MEMBERS, tables[1]) is None
    assert prefill.hear() is None


def ready(worker, name=NAME):
    return worker.ask("status", name) == "OK"


@pytest.mark.parametrize("tables", TABLES.values(), ids=TABLES)
def test_a_pair_links_and_transfers(workers, tables):
    prefill, decode = workers("PROMPT", PREFILL), workers("DECODER", DECODE)
    prefill.ask("fill", 5)
    connect(prefill, decode, tables)
    for worker in (prefill, decode):
        wait_for(lambda worker=worker: ready(worker))
    assert decode.ask("pull", PREFILL, [1, 6, 7], [4, 0, 2]) == values_of(5, [1, 6, 7])
    # A second attempt is told that it is one, and spoils nothing.
    assert decode.ask("link", NAME, MEMBERS, tables[1])["raised"] == "LLM_ALREADY_LINK"
    assert decode.ask("pull", PREFILL, [2], [1]) == values_of(5, [2])


@pytest.mark.parametrize("order", [True, False])
def test_a_decode_worker_that_leaves_before_prefill_polls(workers, order):
    prefill, decode = workers("PROMPT", PREFILL), workers("DECODER", DECODE)
    prefill.ask("fill", 1)
    connect(prefill, decode, TABLES["itself first"])
    wait_for(lambda: ready(decode))
    assert decode.ask("pull", PREFILL, [3], [3]) == values_of(1, [3])
    if order:
        decode.ask("unlink", NAME)
    decode.leave()
    # It polls only now, as one that sleeps for seconds between polls.
    wait_for(lambda: ready(prefill))
    assert prefill.ask("unlink", NAME) is None


def test_a_decode_worker_that_restarts(workers):
    prefill, decode = workers("PROMPT", PREFILL), workers("DECODER", DECODE)
    prefill.ask("fill", 2)
    tables = TABLES["itself first"]
    connect(prefill, decode, tables)
    wait_for(lambda: ready(prefill))
    for life in range(3):
        decode.kill()
        decode = workers("DECODER", DECODE)
        # Prefill has it in its table of linked clusters and skips the call.
        assert decode.ask("link", NAME, MEMBERS, tables[1]) is None
        wait_for(lambda: ready(decode) and ready(prefill))  # pylint: disable=cell-var-from-loop
        prefill.ask("fill", 3 + life)
        assert decode.ask("pull", PREFILL, [0, 5], [0, 5]) == values_of(3 + life, [0, 5])


def test_three_prefill_and_four_decode_workers_on_one_host(workers):
    table = one_server
    prefills = [workers("PROMPT", 1000 + i) for i in range(3)]
    decodes = [workers("DECODER", 2000 + i) for i in range(4)]

    def call(p, d, first):
        return f"comm-{p.cluster_id}-{d.cluster_id}", [[p.cluster_id, 0], [d.cluster_id, 1]], table(first)

    for i, prefill in enumerate(prefills):
        prefill.ask("fill", 500 * i)
        prefill.tell("links", [call(prefill, decode, 0) for decode in decodes])
    for decode in decodes:
        decode.tell("links", [call(prefill, decode, 1) for prefill in reversed(prefills)])
    for worker in prefills + decodes:
        assert worker.hear() is None
    for prefill in prefills:
        for decode in decodes:
            for worker in (prefill, decode):
                wait_for(lambda: ready(worker, call(prefill, decode, 0)[0]))  # pylint: disable=W0640
    # float16 tells these numbers apart.
    for i, prefill in enumerate(prefills):
        for decode in decodes:
            decode.tell("pull", prefill.cluster_id, [7, 1], [i, i + 3])
        for decode in decodes:
            assert decode.hear() == values_of(500 * i, [7, 1])
    for worker in decodes + prefills:
        worker.leave()
