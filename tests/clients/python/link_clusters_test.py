"""Programs of version 2 that link by address, each with a listening port of its own."""

import pytest

from conftest import values_of

PROMPT, DECODER = 0, 1
OK = ["LLM_SUCCESS", "LLM_SUCCESS"]


@pytest.fixture
def pair(workers):
    """Both listen, and the decoder gives its own listening port as the local one."""
    prompt = workers("PROMPT", PROMPT, listen="127.0.0.1:0", local_comm_res="")
    decoder = workers("DECODER", DECODER, listen="127.0.0.1:0", local_comm_res="")
    there, here = (["127.0.0.1", one.ask("port")] for one in (prompt, decoder))
    return prompt, decoder, (PROMPT, here, there)


def test_push_and_pull_and_part_by_force_at_both_ends(pair):
    prompt, decoder, link = pair
    decoder.ask("fill", 4)
    assert decoder.ask("link_clusters", *link) == OK
    assert decoder.ask("push", PROMPT, [0, 1], [0, 2]) is None
    assert prompt.ask("read", [0, 2]) == values_of(4, [0, 1])
    prompt.ask("fill", 8)
    assert decoder.ask("pull", PROMPT, [5], [6]) == values_of(8, [5])
    for worker, peer in ((prompt, DECODER), (decoder, PROMPT)):
        assert worker.ask("unlink_clusters", peer, True)[0] == "LLM_SUCCESS"
        worker.leave()


def test_link_again_right_after_unlink(pair):
    prompt, decoder, link = pair
    for life in range(5):
        prompt.ask("fill", life)
        assert decoder.ask("link_clusters", *link) == OK
        assert decoder.ask("pull", PROMPT, [life], [0]) == values_of(life, [life])
        assert decoder.ask("unlink_clusters", PROMPT, False) == OK
