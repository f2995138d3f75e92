"""How the members of link() meet, and meet again."""

import os
import socket
import threading
import time

import pytest

import llm_datadist as ld
from conftest import V2_OPTIONS, rank_table, wait_for
from llm_datadist import RegisterMemStatus, _meeting
from link_test import has_ipv6
from options_test import refused
from transfer_test import own_cache

MEMBERS = {10: 0, 11: 1}
ONE_SERVER = rank_table((None, [(0, None), (1, None)]))


def mix(peers, cluster_id, **more):
    return peers(role="MIX", cluster_id=cluster_id, shape=[4, 8], v2=True, options=dict(V2_OPTIONS, **more))


def link(mine, others, name, members, table, their_table=None):
    """Everybody calls; the id here."""
    for other in others:
        other.tell(what="link", name=name, members=list(members.items()), table=their_table or table)
    comm = mine.link(name, members, table)
    for other in others:
        other.hear()
    return comm


def is_met(mine, comm):
    return mine.query_register_mem_status(comm) == RegisterMemStatus.OK


def pulled(mine, peer, cluster, block):
    """What comes of a pull of this block of the peer's second tensor."""
    cache = own_cache(mine.cache_manager, 4, [4, 8])
    mine.cache_manager.pull_blocks(ld.CacheKeyByIdAndIndex(cluster, peer.info["cache_id"]), cache,
                                   [block], [0])
    return cache.numpy(1)[0].tolist()


def addresses(table, name="x"):
    return _meeting.Meeting(name, MEMBERS, table, 10).addresses


def test_the_device_has_the_address_and_the_server_a_name():
    for one, two in (("1", "2"), ("node-of-nobody.invalid", "0x7f"), ("", None), (1, 2), ("server 1", "1.2")):
        table = rank_table((one, [(0, "10.0.0.1")]), (two, [(1, "10.0.0.2")]))
        assert addresses(table) == {0: ["10.0.0.1"], 1: ["10.0.0.2"]}
    # An address of the server's is for where nobody answers at the device's.
    table = rank_table(("192.0.2.1", [(0, "10.0.0.1")]), ("192.0.2.2", [(1, "")]))
    assert addresses(table) == {0: ["10.0.0.1", "192.0.2.1"], 1: ["192.0.2.2"]}
    table = rank_table(("localhost", [(0, None)]), ("192.0.2.2", [(1, None)]))
    assert addresses(table)[0] == ["localhost"]
    # What this machine has comes first on a table of one server.
    assert addresses(rank_table(("1", [(0, "192.0.2.1"), (1, "127.0.0.3")]))) == {
        0: ["127.0.0.1", "192.0.2.1"], 1: ["127.0.0.3", "127.0.0.1"]}
    for server_id in ("1", "node-of-nobody.invalid", None, 7):
        table = rank_table((server_id, [(0, None)]), ("192.0.2.2", [(1, None)]))
        refused(lambda table=table: addresses(table), text="no address for rank 0")


@pytest.mark.parametrize("ids", [("1", "2"), ("node-of-nobody.invalid", "0.0.0.1"), ("localhost", "x")])
def test_members_meet_whatever_the_servers_are_called(peers, engines, ids):
    table = rank_table((ids[0], [(0, "127.0.0.2")]), (ids[1], [(1, "127.0.0.3")]))
    other, mine = mix(peers, 10), engines(ld.LLMRole.MIX, 11, V2_OPTIONS)
    comm = link(mine, [other], f"ids-{os.getpid()}", MEMBERS, table)
    assert is_met(mine, comm) and mine.links() == [10]


def test_members_meet_by_ipv6(peers, engines):
    if not has_ipv6():
        pytest.skip("there is no IPv6")
    for table in (rank_table(("1", [(0, "::1")]), ("2", [(1, "0:0::1")])),
                  rank_table(("[::1]", [(0, None)]), ("::1", [(1, None)]))):
        assert addresses(table) == {0: ["::1"], 1: ["::1"]}
        other, mine = mix(peers, 10), engines(ld.LLMRole.MIX, 11, V2_OPTIONS)
        comm = link(mine, [other], f"ipv6-{os.getpid()}", MEMBERS, table)
        assert is_met(mine, comm)
        other.close()


def test_members_meet_where_the_server_is_named_alone(peers, engines):
    table = rank_table(("localhost", [(0, None)]), ("127.0.0.1", [(1, None)]))
    other, mine = mix(peers, 10), engines(ld.LLMRole.MIX, 11, V2_OPTIONS)
    comm = link(mine, [other], f"names-{os.getpid()}", MEMBERS, table)
    assert is_met(mine, comm)


TEXTS = [rank_table(("a", [(0, "127.0.0.2")]), ("b", [(1, "127.0.0.3")])),
         rank_table(("b", [(1, "127.0.0.3")]), ("a", [(0, "127.0.0.2")]), indent=4, status="completed"),
         rank_table(("b", [(1, "127.0.0.3")]), ("c", [(2, "127.0.0.4")]), ("a", [(0, " 127.0.0.2".strip())]),
                    version="1.2", server_count="3").replace('", "', '" ,\n"')]


def test_tables_are_compared_by_what_they_mean():
    def digest(table, members=None, name="x"):
        return _meeting.Meeting(name, members or MEMBERS, table, 10).digest

    assert len({digest(table) for table in TEXTS}) == 1
    assert digest(TEXTS[0], {11: 1, 10: 0}) == digest(TEXTS[0])
    other = rank_table(("a", [(0, "127.0.0.2")]), ("b", [(1, "127.0.0.9")]))
    assert len({digest(TEXTS[0]), digest(other), digest(TEXTS[0], name="y"),
                digest(TEXTS[0], {10: 0, 12: 1})}) == 4


@pytest.mark.parametrize("theirs", TEXTS[1:], ids=["order", "space"])
def test_members_meet_with_different_texts(peers, engines, theirs):
    other, mine = mix(peers, 11), engines(ld.LLMRole.MIX, 10, V2_OPTIONS)
    comm = link(mine, [other], f"texts-{os.getpid()}", MEMBERS, TEXTS[0], theirs)
    wait_for(lambda: is_met(mine, comm))


@pytest.mark.parametrize("how", ["unlink", "leave"])
@pytest.mark.parametrize("ours_hosts", [True, False])
def test_who_has_come_and_left_between_two_polls_was_met(peers, engines, how, ours_hosts):
    mine = engines(ld.LLMRole.MIX, 10 if ours_hosts else 11, V2_OPTIONS)
    other = mix(peers, 11 if ours_hosts else 10)
    comm = link(mine, [other], f"left-{os.getpid()}", MEMBERS, ONE_SERVER)
    if how == "unlink":
        other.ask(what="unlink")
    else:
        other.leave()
    wait_for(lambda: mine.links() == [])
    # The first poll comes after all that.
    assert mine.query_register_mem_status(comm) == RegisterMemStatus.OK
    assert mine.query_register_mem_status(comm) == RegisterMemStatus.OK
    mine.unlink(comm)


def test_a_link_of_before_does_not_count(peers, engines):
    mine, name = engines(ld.LLMRole.MIX, 10, V2_OPTIONS), f"before-{os.getpid()}"
    other = mix(peers, 11)
    comm = link(mine, [other], name, MEMBERS, ONE_SERVER)
    wait_for(lambda: is_met(mine, comm))
    mine.unlink(comm)
    other.ask(what="unlink")
    # Now the other says where it is, and never links.
    meeting = _meeting.Meeting(name, MEMBERS, ONE_SERVER, 11)
    pretender = threading.Thread(target=_meeting.attend, args=(meeting, (11, ("127.0.0.1", 1)), time.monotonic() + 20))
    pretender.start()
    comm = mine.link(name, MEMBERS, ONE_SERVER)
    pretender.join()
    assert mine.query_register_mem_status(comm) == RegisterMemStatus.PREPARING


def test_a_member_that_restarts_is_met_by_who_holds_the_comm(peers, engines):
    mine, name = engines(ld.LLMRole.PROMPT, 10, V2_OPTIONS), f"restart-{os.getpid()}"
    for life in range(3):
        other = mix(peers, 11)
        if life == 0:
            comm = link(mine, [other], name, MEMBERS, ONE_SERVER)
        else:
            # Nobody calls link here, as a prompt that believes it is linked.
            other.ask(what="link", name=name, members=list(MEMBERS.items()), table=ONE_SERVER)
        wait_for(lambda: is_met(mine, comm))
        assert pulled(mine, other, 11, 2) == [102] * 8
        other.close()
        wait_for(lambda: mine.query_register_mem_status(comm) == RegisterMemStatus.FAILED)
    mine.unlink(comm)


def test_the_host_restarts_and_is_met(peers, engines):
    mine, name = engines(ld.LLMRole.DECODER, 11, V2_OPTIONS), f"host-{os.getpid()}"
    third = mix(peers, 12)
    members = {10: 0, 11: 1, 12: 2}
    table = rank_table((None, [(0, None), (1, None), (2, None)]))
    other = mix(peers, 10)
    comm = link(mine, [other, third], name, members, table)
    wait_for(lambda: is_met(mine, comm))
    other.close()
    wait_for(lambda: mine.query_register_mem_status(comm) == RegisterMemStatus.FAILED)
    other = mix(peers, 10)
    other.ask(what="link", name=name, members=list(members.items()), table=table)
    wait_for(lambda: is_met(mine, comm) and third.ask(what="status") == other.ask(what="status") == 0)
    assert pulled(mine, other, 10, 3) == [103] * 8
    assert pulled(mine, third, 12, 3) == [103] * 8


def test_after_unlink_nobody_answers(peers, engines):
    mine, name = engines(ld.LLMRole.MIX, 10, V2_OPTIONS), f"silent-{os.getpid()}"
    other = mix(peers, 11)
    comm = link(mine, [other], name, MEMBERS, ONE_SERVER)
    meeting = _meeting.Meeting(name, MEMBERS, ONE_SERVER, 11)
    with socket.create_connection(("127.0.0.1", meeting.ports[0])) as guest:
        assert meeting.digest.hex().encode() in guest.recv(4096)
    mine.unlink(comm)
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", meeting.ports[0])).close()


def test_who_was_unlinked_on_purpose_is_not_sought(peers, engines):
    mine, name = engines(ld.LLMRole.MIX, 11, V2_OPTIONS), f"parted-{os.getpid()}"
    other = mix(peers, 10)
    comm = link(mine, [other], name, MEMBERS, ONE_SERVER)
    cluster = ld.LLMClusterInfo()
    cluster.remote_cluster_id = 10
    cluster.append_remote_ip_info("127.0.0.1", 1)
    assert mine.unlink_clusters([cluster]) == (0, [0])
    kept, = mine._keeper._kept
    assert not kept.is_lost() and mine.links() == []
    mine.unlink(comm)


def test_a_forked_child_leaves_the_meeting_to_its_parent(peers, engines):
    mine, name = engines(ld.LLMRole.MIX, 10, V2_OPTIONS), f"fork-{os.getpid()}"
    other = mix(peers, 11)
    comm = link(mine, [other], name, MEMBERS, ONE_SERVER)
    fd = mine._keeper._kept[0].host.listener.fileno()
    child = os.fork()
    if child == 0:
        try:
            os.fstat(fd)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    other.close()
    other = mix(peers, 11)
    other.ask(what="link", name=name, members=list(MEMBERS.items()), table=ONE_SERVER)
    wait_for(lambda: is_met(mine, comm))
