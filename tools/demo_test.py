#!/usr/bin/env python3
"""llm-datadist demo: verdicts, exit codes, both sides by hand, and peers that die or talk nonsense.

    demo_test.py PROGRAM
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import unittest

PROGRAM = sys.argv.pop(1)
QUICK = ["--prompt", "And it came to pass, that he went", "--tokens", "20", "--repeat", "2"]


def demo(*arguments):
    return subprocess.run([PROGRAM, "demo", *arguments], capture_output=True, text=True,
                          timeout=100)


def last_line(text):
    return text.rstrip("\n").rsplit("\n", 1)[-1]


class Side:
    """One side of the demo, by hand."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen([PROGRAM, "demo", *arguments], stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def end(self):
        """The last line and the exit status."""
        out, _ = self.process.communicate(timeout=100)
        return last_line(out), self.process.returncode

    def port(self):
        line = self.process.stdout.readline()
        return int(re.match(r"waiting at [^ ]*:(\d+);", line).group(1))


def prompt_side(*arguments):
    return Side("prompt", "--listen", "127.0.0.1:0", *QUICK, *arguments)


class MainJob(unittest.TestCase):
    def test_all_ways_are_identical(self):
        result = demo(*QUICK, "--timeout", "90")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertRegex(last_line(result.stdout), "^demo: ok")
        rows = re.findall(r"^(alone|pull|push) +(-|shm|tcp) ", result.stdout, re.M)
        self.assertEqual(rows, [("alone", "-"), ("pull", "shm"), ("pull", "tcp"), ("push", "shm"),
                                ("push", "tcp")])
        self.assertNotIn("\033", result.stdout)

    def test_one_transport_as_json(self):
        result = demo(*QUICK, "--transport", "tcp", "--json", "--seed", "0")
        self.assertEqual(result.returncode, 0, result.stdout + result.stderr)
        self.assertRegex(last_line(result.stderr), "^demo: ok")
        told = json.loads(result.stdout)
        self.assertEqual(told["result"], "ok")
        self.assertEqual([(w["way"], w["transport"]) for w in told["ways"]],
                         [("alone", None), ("pull", "tcp"), ("push", "tcp")])
        self.assertEqual(told["generated_tokens"], 20)
        self.assertTrue(all(w["bytes_moved"] > 0 for w in told["ways"][1:]))

    def test_texts_of_other_languages_stay_valid_json(self):
        text = 'Grüße, "Welt"\n'
        result = demo("--prompt", text, "--tokens", "5", "--transport", "shm", "--json")
        self.assertEqual(json.loads(result.stdout)["prompt"], text)

    def test_shortest_and_longest_text(self):
        for prompt, tokens in (("A", "1"), ("A" * 448, "64")):
            result = demo("--prompt", prompt, "--tokens", tokens, "--transport", "shm",
                          "--repeat", "1", "--timeout", "90")
            self.assertEqual(result.returncode, 0, result.stdout + result.stderr)

    def test_death_of_either_process_is_told(self):
        for part in ("prompt", "decoder"):
            # So many transfers take longer than this test.
            with Side("--transport", "shm", "--repeat", "10000", "--timeout", "60") as job:
                os.kill(self.child_of(job.process, part), signal.SIGKILL)
                line, status = job.end()
            self.assertEqual(status, 1)
            self.assertRegex(line, f"^demo: FAILED: pull over shm: the {part} process was ended by")

    @staticmethod
    def child_of(process, part):
        """Waits until the job has started the part."""
        while process.poll() is None:
            for pid in filter(str.isdigit, os.listdir("/proc")):
                try:
                    with open(f"/proc/{pid}/stat") as file:
                        parent = int(file.read().rsplit(")", 1)[1].split()[1])
                    with open(f"/proc/{pid}/cmdline") as file:
                        words = file.read().split("\0")
                except OSError:
                    continue
                if parent == process.pid and words[1:3] == ["demo", part]:
                    return int(pid)
        raise AssertionError(f"the demo ended without starting a {part}")

    def test_a_process_that_stands_still_ends_the_job(self):
        for part in ("prompt", "decoder"):
            with Side(*QUICK, "--transport", "tcp", "--repeat", "10000", "--timeout", "4") as job:
                os.kill(self.child_of(job.process, part), signal.SIGSTOP)
                line, status = job.end()
            self.assertEqual(status, 1)
            self.assertRegex(line, "^demo: FAILED: pull over tcp: ")


class ByHand(unittest.TestCase):
    def check_pair(self, prompt_arguments, decoder_arguments, way):
        with prompt_side(*prompt_arguments) as prompt:
            decoder = demo("decoder", "--connect", f"127.0.0.1:{prompt.port()}", *decoder_arguments)
            line, status = prompt.end()
        self.assertEqual((decoder.returncode, status), (0, 0), decoder.stdout + line)
        self.assertRegex(last_line(decoder.stdout), f"^demo: ok, {way}")
        self.assertRegex(line, f"^demo: ok, {way}")

    def test_names_and_ipv6(self):
        for host in ("localhost", "[::1]"):
            if host == "[::1]" and not socket.has_dualstack_ipv6():
                continue
            with Side("prompt", "--listen", f"{host}:0", *QUICK) as prompt:
                decoder = demo("decoder", "--connect", f"{host}:{prompt.port()}")
                line, status = prompt.end()
            self.assertEqual((decoder.returncode, status), (0, 0), decoder.stdout + line)

    def test_pull(self):
        self.check_pair([], [], "pull over shm")

    def test_pull_over_tcp_because_the_prompt_wants_it(self):
        self.check_pair(["--transport", "tcp"], [], "pull over tcp")

    def test_push_over_tcp_because_the_decoder_wants_it(self):
        self.check_pair([], ["--way", "push", "--transport", "tcp"], "push over tcp")

    def test_transports_that_do_not_meet(self):
        with prompt_side("--transport", "shm") as prompt:
            address = f"127.0.0.1:{prompt.port()}"
            decoder = demo("decoder", "--connect", address, "--transport", "tcp")
            line, status = prompt.end()
        self.assertEqual((decoder.returncode, status), (1, 1))
        self.assertRegex(last_line(decoder.stdout), "^demo: FAILED: .*LLM_LINK_FAILED")
        self.assertRegex(line, "^demo: FAILED: the decoder gave up: .*LLM_LINK_FAILED")

    def test_nobody_listens(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        result = demo("decoder", "--connect", f"127.0.0.1:{port}")
        self.assertEqual(result.returncode, 1)
        self.assertRegex(last_line(result.stdout),
                         f"^demo: FAILED: can't connect to 127.0.0.1:{port}")

    def check_prompt_hears(self, words, reason):
        with prompt_side("--timeout", "1") as prompt:
            with socket.create_connection(("127.0.0.1", prompt.port())) as peer:
                peer.recv(10000)
                if words is not None:
                    peer.sendall(words)
                    peer.shutdown(socket.SHUT_WR)
                line, status = prompt.end()
        self.assertEqual(status, 1)
        self.assertRegex(line, f"^demo: FAILED: .*{reason}")

    def test_a_decoder_that_talks_nonsense(self):
        self.check_prompt_hears(b"GET / HTTP/1.1\r\n", "should have said 'ready'")
        self.check_prompt_hears(b"ready push=2 cluster=2\n", "no usable 'push'")
        ready = b"ready push=0 cluster=2 cache=1 blocks="
        self.check_prompt_hears(ready + b"1,2,64\n", "no usable 'blocks'")
        self.check_prompt_hears(ready + b"1\n", "offers 1 blocks for 3")
        self.check_prompt_hears(ready + b"1,2,3\n", "LLM_NOT_YET_LINK")
        self.check_prompt_hears(b"x" * 8192, "too long")

    def test_a_decoder_that_leaves_or_is_silent(self):
        self.check_prompt_hears(b"", "closed the connection")
        self.check_prompt_hears(None, "did not say 'ready' within 1 s")

    def test_a_prompt_with_another_model(self):
        with socket.create_server(("127.0.0.1", 0)) as server:
            with Side("decoder", "--connect", f"127.0.0.1:{server.getsockname()[1]}") as decoder:
                peer, _ = server.accept()
                with peer:
                    peer.sendall(b"hello version=1 weights=1 cluster=1 port=1 prompt=10 tokens=5 "
                                 b"seed=1 repeat=1\n")
                    line, status = decoder.end()
        self.assertEqual(status, 1)
        self.assertRegex(line, "^demo: FAILED: the prompt side has another model")


class Usage(unittest.TestCase):
    def test_mistakes_name_the_value_and_what_was_expected(self):
        for arguments, reason in (
                (["--tokens", "0"], "demo: --tokens: '0' is not allowed: expected a number"),
                (["--tokens=1x"], "--tokens: '1x' is not allowed"),
                (["--tokens", "99999999999999999999"], "--tokens: '99999999999999999999'"),
                (["--tokens"], "--tokens needs a value: expected a number"),
                (["--tokens", "511"], "511 are 690 tokens together: expected at most 512"),
                (["--transport", "rdma"], "'rdma' is not allowed: expected shm or tcp"),
                (["--prompt", ""], "expected 1 to 448 bytes"),
                (["--prompt", "x" * 449], "expected 1 to 448 bytes"),
                (["--jason"], "did you mean '--json'"),
                (["decodr"], "did you mean 'decoder'"),
                (["prompt"], "demo prompt: --listen HOST:PORT is missing"),
                (["prompt", "--listen", "local host:1"], "'local host:1' is not allowed: expected"),
                (["prompt", "--listen", "1.2.3.4:65536"], "'1.2.3.4:65536' is not allowed"),
                (["decoder"], "demo decoder: --connect HOST:PORT is missing"),
                (["decoder", "--connect", "1.2.3.4:0"], "'1.2.3.4:0' is not allowed"),
                (["decoder", "--connect", "1.2.3.4:5", "--way", "shove"], "expected pull or push"),
                (["alone", "--transport", "shm"], "alone: there is no argument '--transport'")):
            result = demo(*arguments)
            self.assertEqual(result.returncode, 2, arguments)
            self.assertIn(reason, result.stderr)
            self.assertEqual(result.stdout, "")

    def test_help(self):
        for part in ([], ["prompt"], ["decoder"], ["alone"]):
            result = demo(*part, "--help")
            self.assertEqual(result.returncode, 0)
            self.assertIn(" ".join(["usage: llm-datadist demo", *part]), result.stdout)


unittest.main()
