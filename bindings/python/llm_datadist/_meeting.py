"""How the members of LLMDataDist.link find each other.

All members call link with the same name and members, and rank tables that mean the same: each may put
itself first, and indent as it likes.  None knows a port of the others.  So they meet:

1. A member's address is its device's `device_ip` in the rank table.  Without one it is `server_id`, if
   that is an IP address or a host name that resolves; otherwise `server_id` is a name and nothing more.
   `server_id` as an address, and 127.0.0.1 on a table of one server, are the last resort where nobody
   answers at the first.
2. The member with the lowest rank is the host of the meeting.  It listens at its own address, at the first
   free one of eight ports between 20000 and 31999 that follow from the SHA-256 of the name and of each
   member's cluster id, rank and address (two bytes each, modulo 12000).
3. The others try these ports in turn, until the host greets them with that hash.  Each says
   where its engine listens.  When all are there the host tells everyone all addresses, and the
   meeting is over.
4. Each member links to every member of a lower rank.

Engines that don't listen yet begin to, at a port that the system chooses.

Until unlink() the host goes on answering at its port, and a member whose link to a lower rank is lost
looks for the host again, so that who has died and come back under its old cluster id is met by all, of
whom none need call link() again.
"""

import errno
import hashlib
import ipaddress
import json
import selectors
import socket
import threading
import time
import typing

from ._status import LLMException, LLMStatusCode, raise_if_false

Address = typing.Tuple[str, int]
Entry = typing.Tuple[int, Address]  # cluster id, and where its engine listens
ANYWHERE = "0.0.0.0"

_FIRST_PORT, _NUM_PORTS, _NUM_CANDIDATES = 20000, 12000, 8
_PATIENCE_S, _FIRST_PATIENCE_S = 2.0, 0.05
_LOOK_AGAIN_S, _LOOK_AGAIN_MAX_S = 0.5, 8.0
_LINE_BYTES = 65536
# What comes of reading what a stranger has sent.
_STRANGE = (OSError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError,
            RecursionError)


def literal(text: typing.Any) -> typing.Optional[str]:
    """An IP address as everybody writes it, None for what is none."""
    try:
        return str(ipaddress.ip_address(text.strip("[]"))) if isinstance(text, str) else None
    except ValueError:
        return None


def _is_host_name(text: typing.Any) -> bool:
    if not isinstance(text, str) or not text:
        return False
    try:
        socket.inet_aton(text)
        return False  # "1" and the like, which would resolve to 0.0.0.1
    except (OSError, UnicodeError):
        pass
    try:
        return bool(socket.getaddrinfo(text, None))
    except (OSError, UnicodeError):
        return False


def is_local(address: str) -> bool:
    """Is it an address of this machine?"""
    try:
        _listen_at(address, 0).close()
        return True
    except OSError:
        return False


class Meeting:
    """Who meets, and where; the same for every member, but for `rank`, which is this one's."""

    def __init__(self, comm_name: str, members: typing.Mapping[int, int], rank_table: str,
                 cluster_id: int) -> None:
        self.members = dict(members)  # cluster id -> rank
        self.rank = self.members[cluster_id]
        self.host_rank = min(self.members.values())
        entries, is_one_server = _read_table(rank_table)
        for rank in self.members.values():
            raise_if_false(rank in entries, "the rank table has no rank {}", rank)
        self.addresses = {rank: self._addresses(rank, *entries[rank], is_one_server)
                          for rank in self.members.values()}
        meant = [[cluster, rank, literal(entries[rank][1]) or str(entries[rank][0])]
                 for cluster, rank in sorted(self.members.items())]
        self.digest = hashlib.sha256(json.dumps([comm_name, meant]).encode()).digest()

    @staticmethod
    def _addresses(rank: int, server_id: typing.Any, device_ip: typing.Any, is_one_server: bool
                   ) -> typing.List[str]:
        """The best one first."""
        found = [literal(device_ip), literal(server_id)]
        if not any(found) and _is_host_name(server_id):
            found.append(server_id)
        if is_one_server:
            found.append("127.0.0.1")
        addresses = list(dict.fromkeys(one for one in found if one))
        raise_if_false(addresses, "the rank table has no address for rank {}: no device_ip, and "
                       "server_id {!r} is none", rank, server_id)
        # On one machine the addresses that it has are at hand, and others are not asked first.
        return sorted(addresses, key=lambda one: not is_local(one)) if is_one_server else addresses

    @property
    def ports(self) -> typing.List[int]:
        return [_FIRST_PORT + int.from_bytes(self.digest[2 * i:2 * i + 2], "big") % _NUM_PORTS
                for i in range(_NUM_CANDIDATES)]

    def entry(self, rank: typing.Any, cluster: typing.Any, ip: typing.Any, port: typing.Any
              ) -> typing.Tuple[int, Entry]:
        """Rank, and entry, of a member that another process speaks of."""
        if any(type(number) is not int for number in (rank, cluster, port)):
            raise ValueError("not numbers")
        if self.members.get(cluster) != rank or not 0 < port < 65536:
            raise ValueError("not a member")
        if literal(ip) is None and ip not in self.addresses[rank]:
            raise ValueError("not an address")
        return rank, (cluster, (ip, port))


def _read_table(rank_table: str) -> typing.Tuple[typing.Dict[int, typing.Tuple[typing.Any, typing.Any]],
                                                 bool]:
    """Rank -> (server_id, device_ip), and whether all are on one server."""
    try:
        servers = json.loads(rank_table)["server_list"]
        entries = {int(device["rank_id"]): (server.get("server_id"), device.get("device_ip"))
                   for server in servers for device in server["device"]}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LLMException(f"the rank table can't be read: {error!r}",
                           LLMStatusCode.LLM_PARAM_INVALID) from None
    return entries, len({str(server_id) for server_id, _ in entries.values()}) == 1


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


def _listen_at(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    where = socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4]
    return socket.create_server(typing.cast(typing.Any, where), family=family, backlog=16)


def _listen(addresses: typing.Sequence[str], ports: typing.Sequence[int]) -> socket.socket:
    for address in (*(one for one in addresses if is_local(one) and literal(one)), ANYWHERE):
        for port in ports:
            try:
                return _listen_at(address, port)
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise LLMException(f"can't listen at {address}:{port}: {error}",
                                       LLMStatusCode.LLM_LINK_FAILED) from None
    raise LLMException(f"none of the meeting's ports {list(ports)} is free",
                       LLMStatusCode.LLM_LINK_FAILED)


class Host:
    """The meeting at the member with the lowest rank."""

    def __init__(self, meeting: Meeting, own: typing.Callable[[], Entry]) -> None:
        self._meeting, self._own = meeting, own
        self._table = {meeting.rank: own()}
        self._connections: typing.Dict[int, socket.socket] = {}
        self.listener = _listen(meeting.addresses[meeting.rank], meeting.ports)

    def gather(self, deadline: float) -> typing.Dict[int, Entry]:
        """Waits for everyone and returns rank -> entry."""
        while len(self._table) < len(self._meeting.members):
            left = deadline - time.monotonic()
            if left <= 0:
                missing = sorted(set(self._meeting.members.values()) - set(self._table))
                raise _timeout(f"link: the members with ranks {missing} didn't come in time")
            self.listener.settimeout(left)
            try:
                self._receive(deadline)
            except socket.timeout:
                continue
        self._tell()
        return self._table

    def answer(self, parted: typing.Container[int]) -> None:
        """Somebody has come after the meeting.  `parted`: clusters that have no place any more."""
        self.listener.settimeout(0)
        try:
            self._receive(time.monotonic() + _PATIENCE_S, parted)
        except OSError:
            return  # it has gone again
        self._table[self._meeting.rank] = self._own()
        self._tell()

    def _receive(self, deadline: float, parted: typing.Container[int] = ()) -> None:
        connection, _ = self.listener.accept()
        digest = self._meeting.digest.hex()
        try:
            _send_line(connection, {"llm-datadist-link": digest})
            hello = _read_line(connection, min(deadline, time.monotonic() + _PATIENCE_S))
            rank, entry = self._meeting.entry(hello["rank"], hello["cluster"], hello["ip"],
                                              hello["port"])
            if hello["digest"] != digest or rank == self._meeting.rank or entry[0] in parted:
                raise ValueError("a stranger")
        except _STRANGE:
            connection.close()
            return
        if rank in self._connections:
            self._connections[rank].close()  # it has tried before
        self._connections[rank], self._table[rank] = connection, entry

    def _tell(self) -> None:
        for connection in self._connections.values():
            try:
                _send_line(connection, sorted(self._table.items()))
            except OSError:
                pass  # it is gone: linking will show
            connection.close()
        self._connections.clear()

    def close(self) -> None:
        self.listener.close()
        for connection in self._connections.values():
            connection.close()
        self._connections.clear()


def attend(meeting: Meeting, own: Entry, deadline: float) -> typing.Dict[int, Entry]:
    """Finds the host and returns rank -> entry."""
    addresses = meeting.addresses[meeting.host_rank]
    patience = _FIRST_PATIENCE_S  # soon through all places, where many may be silent
    while True:
        for address in addresses:
            table = _attend_at(address, meeting, own, deadline, patience)
            if table is not None:
                return table
        if time.monotonic() >= deadline:
            raise _timeout("link: nobody with this name and these members was met at "
                           f"{' or '.join(addresses)}, ports {meeting.ports}")
        patience = min(2 * patience, _PATIENCE_S)
        time.sleep(min(0.02, max(0.0, deadline - time.monotonic())))


def _attend_at(address: str, meeting: Meeting, own: Entry, deadline: float, patience: float
               ) -> typing.Optional[typing.Dict[int, Entry]]:
    for port in meeting.ports:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        try:
            connection = socket.create_connection((address, port), min(left, patience))
        except socket.timeout:
            return None  # no other port there would answer
        except (OSError, UnicodeError):
            continue
        with connection:
            try:
                greeting = _read_line(connection, time.monotonic() + min(left, patience))
                if greeting.get("llm-datadist-link") != meeting.digest.hex():
                    continue
                _send_line(connection, {"digest": meeting.digest.hex(), "rank": meeting.rank,
                                        "cluster": own[0], "ip": own[1][0], "port": own[1][1]})
                table = dict(meeting.entry(rank, cluster, *where)
                             for rank, (cluster, where) in _read_line(connection, deadline))
            except _STRANGE:
                continue
        if len(table) == len(meeting.members):
            return table
    return None


class Kept:
    """One meeting after link() has returned."""

    def __init__(self, meeting: Meeting, host: typing.Optional[Host],
                 is_lost: typing.Callable[[], bool], again: typing.Callable[[float], None]) -> None:
        self.meeting, self.host = meeting, host
        self.parted: typing.Set[int] = set()  # clusters that were unlinked on purpose
        self.is_lost, self.again = is_lost, again
        self.pause, self.look_at = _LOOK_AGAIN_S, 0.0

    def look(self) -> None:
        """Is a member of a lower rank lost?  Then it is sought, less and less often."""
        now = time.monotonic()
        if not self.is_lost():
            self.pause, self.look_at = _LOOK_AGAIN_S, 0.0
        elif now >= self.look_at:
            try:
                self.again(now + _PATIENCE_S)
            except LLMException:
                self.look_at = time.monotonic() + self.pause
                self.pause = min(2 * self.pause, _LOOK_AGAIN_MAX_S)


class Keeper:
    """The thread in which an instance keeps its meetings up."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # held while one meeting is served
        self._kept: typing.List[Kept] = []
        # From the first meeting on.
        self._thread: typing.Optional[threading.Thread] = None
        self._selector: selectors.BaseSelector
        self._wake: socket.socket
        self._waker: socket.socket

    def _start(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._wake, self._waker = socket.socketpair()
        self._selector.register(self._wake, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="llm-datadist-meetings", daemon=True)
        self._thread.start()

    def keep(self, kept: Kept) -> None:
        with self._lock:
            if self._thread is None:
                self._start()
            self._kept.append(kept)
            if kept.host is not None:
                self._selector.register(kept.host.listener, selectors.EVENT_READ, kept)
            self._waker.send(b"k")

    def drop(self, digest: bytes) -> None:
        """Of these meetings none is served any more, when this returns."""
        with self._lock:
            for kept in [one for one in self._kept if one.meeting.digest == digest]:
                self._kept.remove(kept)
                if kept.host is not None:
                    self._selector.unregister(kept.host.listener)
                    kept.host.close()

    def part(self, clusters: typing.Iterable[int]) -> None:
        """These were unlinked on purpose and are not sought any more."""
        with self._lock:
            for kept in self._kept:
                kept.parted.update(clusters)

    def stop(self) -> None:
        if self._thread is not None:
            self._waker.close()
            self._thread.join()
        self.forget()

    def forget(self) -> None:
        """As stop(), without the thread, which a forked child has not."""
        for kept in self._kept:
            if kept.host is not None:
                kept.host.close()
        self._kept = []
        if self._thread is not None:
            self._selector.close()
            self._wake.close()
            self._waker.close()

    def _run(self) -> None:
        while True:
            looks = any(kept.host is None for kept in list(self._kept))
            for key, _ in self._selector.select(_LOOK_AGAIN_S if looks else None):
                if key.data is None:
                    if not self._wake.recv(64):
                        return  # stop()
                    continue
                with self._lock:
                    if key.data in self._kept:
                        key.data.host.answer(key.data.parted)
            for kept in list(self._kept):
                with self._lock:
                    if kept in self._kept:
                        kept.look()
