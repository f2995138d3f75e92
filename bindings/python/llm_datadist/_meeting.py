"""How the members of LLMDataDist.link find each other.

All members call link with the same name, members and rank table, and none knows a port of the others.
So they meet:

1. A member's address is, of its server's entry in the rank table, `server_id` if that is an IPv4 address
   or a host name that resolves to one, else the device's `device_ip`; on a table of one server
   127.0.0.1 is the last resort.
2. The member with the lowest rank is the host of the meeting.  It listens at its own address, at the first
   free one of eight ports between 20000 and 31999 that follow from the SHA-256 of name, members and
   table (two bytes each, modulo 12000).
3. The others try these ports in turn, until the host greets them with that hash.  Each says
   where its engine listens.  When all are there the host tells everyone all addresses, and the
   meeting is over.
4. Each member links to every member of a lower rank.

Engines that don't listen yet begin to, at a port that the system chooses.
"""

import errno
import hashlib
import ipaddress
import json
import socket
import time
import typing

from ._status import LLMException, LLMStatusCode, raise_if_false

Address = typing.Tuple[str, int]

_FIRST_PORT, _NUM_PORTS, _NUM_CANDIDATES = 20000, 12000, 8
_PATIENCE_S = 2.0
_LINE_BYTES = 65536
# What comes of reading what a stranger has sent.
_STRANGE = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
            RecursionError)


def _ipv4(text: typing.Any) -> typing.Optional[str]:
    try:
        return str(ipaddress.IPv4Address(text)) if isinstance(text, str) else None
    except ValueError:
        return None


def member_addresses(rank_table: str, ranks: typing.Iterable[int]) -> typing.Dict[int, str]:
    """Rank -> IPv4 address, out of the rank table's JSON."""
    try:
        table = json.loads(rank_table)
        servers = table["server_list"]
        entries = {int(device["rank_id"]): (server, device)
                   for server in servers for device in server["device"]}
    except (ValueError, KeyError, TypeError) as error:
        raise LLMException(f"the rank table can't be read: {error!r}",
                           LLMStatusCode.LLM_PARAM_INVALID) from None
    addresses = {}
    for rank in ranks:
        raise_if_false(rank in entries, "the rank table has no rank {}", rank)
        server, device = entries[rank]
        address = _ipv4(server.get("server_id"))
        if address is None and isinstance(server.get("server_id"), str):
            try:
                address = socket.gethostbyname(server["server_id"])
            except (OSError, UnicodeError):
                address = None
        address = address or _ipv4(device.get("device_ip"))
        if address is None and len(servers) == 1:
            address = "127.0.0.1"
        raise_if_false(address is not None, "the rank table has no IPv4 address for rank {}", rank)
        addresses[rank] = typing.cast(str, address)
    return addresses


def digest_of(comm_name: str, members: typing.Dict[int, int], rank_table: str) -> bytes:
    text = json.dumps([comm_name, sorted(members.items()), rank_table])
    return hashlib.sha256(text.encode()).digest()


def candidate_ports(digest: bytes) -> typing.List[int]:
    return [_FIRST_PORT + int.from_bytes(digest[2 * i:2 * i + 2], "big") % _NUM_PORTS
            for i in range(_NUM_CANDIDATES)]


def _read_line(connection: socket.socket, deadline: float) -> typing.Any:
    """One line of JSON; OSError or ValueError if there is none in time."""
    data = b""
    while not data.endswith(b"\n"):
        left = deadline - time.monotonic()
        if left <= 0 or len(data) > _LINE_BYTES:
            raise OSError(errno.ETIMEDOUT, "no line")
        connection.settimeout(left)
        piece = connection.recv(4096)
        if not piece:
            raise OSError(errno.ECONNRESET, "closed")
        data += piece
    return json.loads(data)


def _send_line(connection: socket.socket, value: typing.Any) -> None:
    connection.settimeout(_PATIENCE_S)
    connection.sendall(json.dumps(value).encode() + b"\n")


def _timeout(text: str) -> LLMException:
    return LLMException(text, LLMStatusCode.LLM_TIMEOUT)


def _listen(ip: str, ports: typing.Sequence[int]) -> socket.socket:
    for address in (ip, "0.0.0.0"):
        for port in ports:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            try:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listener.bind((address, port))
                listener.listen(16)
                return listener
            except OSError as error:
                listener.close()
                if error.errno == errno.EADDRNOTAVAIL:
                    break  # not an address of this machine: then at all of them
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise LLMException(f"can't listen at {address}:{port}: {error}",
                                       LLMStatusCode.LLM_LINK_FAILED) from None
    raise LLMException(f"none of the meeting's ports {list(ports)} is free",
                       LLMStatusCode.LLM_LINK_FAILED)


def _entry(members: typing.Mapping[int, int], rank: typing.Any, cluster: typing.Any, ip: typing.Any,
           port: typing.Any) -> typing.Tuple[int, typing.Tuple[int, Address]]:
    """Rank, and (cluster id, address), of a member that another process speaks of."""
    if any(type(number) is not int for number in (rank, cluster, port)):
        raise ValueError("not numbers")
    if members.get(cluster) != rank or not 0 < port < 65536 or _ipv4(ip) is None:
        raise ValueError("not a member")
    return rank, (cluster, (ip, port))


def host(ip: str, digest: bytes, members: typing.Mapping[int, int],
         own: typing.Tuple[int, Address], deadline: float
         ) -> typing.Dict[int, typing.Tuple[int, Address]]:
    """Waits for everyone and returns rank -> (cluster id, address); members: cluster id -> rank."""
    rank = members[own[0]]
    table = {rank: own}
    connections: typing.Dict[int, socket.socket] = {}
    listener = _listen(ip, candidate_ports(digest))
    try:
        while len(table) < len(members):
            left = deadline - time.monotonic()
            if left <= 0:
                missing = sorted(set(members.values()) - set(table))
                raise _timeout(f"link: the members with ranks {missing} didn't come in time")
            listener.settimeout(left)
            try:
                connection, _ = listener.accept()
            except socket.timeout:
                continue
            try:
                _send_line(connection, {"llm-datadist-link": digest.hex()})
                hello = _read_line(connection, min(deadline, time.monotonic() + _PATIENCE_S))
                who, entry = _entry(members, hello["rank"], hello["cluster"], hello["ip"],
                                    hello["port"])
                if hello["digest"] != digest.hex() or who == rank:
                    raise ValueError("a stranger")
            except _STRANGE:
                connection.close()
                continue
            if who in connections:
                connections[who].close()  # it has tried before
            connections[who], table[who] = connection, entry
        for connection in connections.values():
            try:
                _send_line(connection, sorted(table.items()))
            except OSError:
                pass  # it is gone: linking will show
    finally:
        listener.close()
        for connection in connections.values():
            connection.close()
    return table


def attend(ip: str, digest: bytes, members: typing.Mapping[int, int],
           own: typing.Tuple[int, Address], deadline: float
           ) -> typing.Dict[int, typing.Tuple[int, Address]]:
    """Finds the host and returns rank -> (cluster id, address); members: cluster id -> rank."""
    ports = candidate_ports(digest)
    while True:
        for port in ports:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _timeout(f"link: nobody with this name and these members was met at {ip}, "
                               f"ports {ports}")
            try:
                with socket.create_connection((ip, port), min(left, _PATIENCE_S)) as connection:
                    greeting = _read_line(connection, time.monotonic() + min(left, _PATIENCE_S))
                    if greeting.get("llm-datadist-link") != digest.hex():
                        continue
                    _send_line(connection, {"digest": digest.hex(), "rank": members[own[0]],
                                            "cluster": own[0], "ip": own[1][0], "port": own[1][1]})
                    table = dict(_entry(members, who, cluster, *address)
                                 for who, (cluster, address) in _read_line(connection, deadline))
                    if len(table) == len(members):
                        return table
            except _STRANGE:
                continue
        time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))
