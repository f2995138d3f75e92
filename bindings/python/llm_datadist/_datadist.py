"""LLMDataDist, the face of both modes."""

import atexit
import itertools
import os
import threading
import time
import typing

from . import _core, _meeting
from ._check import check_dict, check_int32, check_isinstance, check_uint32, check_uint64
from ._config import (C_LISTEN_IP_INFO, EngineOptions, LISTEN_IP_INFO, read_options)
from ._managers import CacheManager, KvCacheManager
from ._status import (LLMException, LLMStatusCode, handle_llm_status, raise_if_false,
                      raise_if_true)
from ._types import LLMClusterInfo, LLMRole, RegisterMemStatus, host_and_port, ip_to_text

Clusters = typing.Union[typing.List[LLMClusterInfo], typing.Tuple[LLMClusterInfo, ...]]
Results = typing.Tuple[LLMStatusCode, typing.List[LLMStatusCode]]

# Initialized instances live until finalize: caches and views may be all that a program has kept.
_alive: "typing.Set[LLMDataDist]" = set()
_comm_ids = itertools.count(1)

_Self = typing.TypeVar("_Self", bound="LLMDataDist")

# So long the members of link() have, all of them together, to confirm that this one leaves.
_FAREWELL_MS = 1000

# A source address that leaves the choice to the system.
_FROM_ANYWHERE = [("0.0.0.0", 0)]


class _Comm:
    """The links that one call of link() made."""

    def __init__(self, meeting: _meeting.Meeting, table: typing.Dict[int, _meeting.Entry],
                 ready_before: typing.Dict[int, int]) -> None:
        self.meeting = meeting
        self.peers: typing.Dict[int, _core.Peer] = {}  # by cluster id
        self.update(table)
        # How often a link to each was ready before: one more, and it was met.
        self.ready_before = ready_before

    def update(self, table: typing.Dict[int, _meeting.Entry]) -> None:
        for rank, (cluster, (ip, port)) in table.items():
            if rank != self.meeting.rank:
                self.peers[cluster] = _core.Peer(cluster, 0, _FROM_ANYWHERE, [(ip, port)])

    @property
    def linked_by_us(self) -> typing.List[_core.Peer]:
        return [peer for cluster, peer in self.peers.items()
                if self.meeting.members[cluster] < self.meeting.rank]


def _is_linked(engine: _core.Engine, cluster_id: int) -> bool:
    """A peer that is silent may speak again."""
    info = engine.link_info(cluster_id)
    return info is not None and info["state"] != "broken"


def _is_ready(engine: _core.Engine, cluster_id: int) -> bool:
    info = engine.link_info(cluster_id)
    return info is not None and info["state"] == "ready"


class LLMDataDist:
    """One cluster: an engine with caches, and links to other clusters.

        prompt = LLMDataDist(LLMRole.PROMPT, 1)
        config = LLMConfig()
        config.device_id = 0
        config.listen_ip_info = "127.0.0.1:26000"
        prompt.init(config.generate_options())
        cache = prompt.kv_cache_manager.allocate_blocks_cache(
            CacheDesc(2, [8, 1024], DataType.DT_FLOAT16))
        cache.numpy(0)[:] = 1

    A process may have several of them.  `with LLMDataDist(...) as datadist:` finalizes at the end; without
    finalize() an initialized one lives as long as the process.
    In v1 mode (`kv_cache_manager`) the library allocates caches and roles are strict; in v2 mode
    (`cache_manager`, with the option llm.EnableCacheManager "1") the caller registers memory and any side
    links, pulls and pushes.
    """

    def __init__(self, role: typing.Optional[LLMRole], cluster_id: int) -> None:
        check_isinstance("role", role, LLMRole)
        check_uint64("cluster_id", cluster_id)
        self._role = role
        self._cluster_id = int(cluster_id)
        self._engine: typing.Optional[_core.Engine] = None
        self._options: typing.Optional[EngineOptions] = None
        self._kv_cache_manager: typing.Optional[KvCacheManager] = None
        self._cache_manager: typing.Optional[CacheManager] = None
        self._comms: typing.Dict[int, _Comm] = {}
        self._listen_at = ""
        self._listen_lock = threading.Lock()  # calls of link() may run side by side
        self._keeper = _meeting.Keeper()

    # ---- life cycle ----

    def init(self, options: typing.Dict[str, str]) -> None:
        """Opens devices, pools and, for a prompt, the listener.  `options` is only read.

        On an initialized instance this does nothing.
        """
        if self._engine is not None:
            return
        check_dict("options", options, str, str)
        role = self._known_role()
        read = read_options(options, role == LLMRole.PROMPT, os.environ)
        engine = _core.Engine(self._cluster_id, int(role))
        engine.initialize(read.native)
        self._engine, self._options = engine, read
        self._listen_at = read.listen
        if read.cache_manager:
            self._cache_manager = CacheManager(engine, read, role)
        else:
            self._kv_cache_manager = KvCacheManager(engine, read, role)
        _alive.add(self)

    def _known_role(self) -> LLMRole:
        raise_if_false(self._role is not None, "role is required")
        return typing.cast(LLMRole, self._role)

    def finalize(self) -> None:
        """Ends links and caches.  Never beside other calls; again, or before init, it does nothing."""
        if self._engine is None:
            return
        # They hold memory that peers read until the engine has ended.
        managers = [self._kv_cache_manager, self._cache_manager]
        for manager in managers:
            if manager is not None:
                manager._end()
        engine = self._engine
        self._keeper.stop()
        self._leave(engine)
        self._forget()
        _alive.discard(self)
        engine.finalize()
        managers.clear()

    def _leave(self, engine: _core.Engine) -> None:
        """Tells the members of link(), so that they don't take the end for a death."""
        peers = {cluster: peer for comm in self._comms.values() for cluster, peer in comm.peers.items()
                 if _is_ready(engine, cluster)}
        if peers:
            engine.unlink(list(peers.values()), _FAREWELL_MS, False)

    def _forget(self) -> None:
        """Back to what it was before init."""
        for manager in (self._kv_cache_manager, self._cache_manager):
            if manager is not None:
                manager._initialized = False
        self._engine = self._kv_cache_manager = self._cache_manager = None
        self._comms.clear()
        self._keeper.forget()
        self._keeper = _meeting.Keeper()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.finalize()

    def _ready(self) -> _core.Engine:
        if self._engine is None:
            raise RuntimeError("llm datadist is not initialized")
        return self._engine

    def _mode(self) -> EngineOptions:
        self._ready()
        return typing.cast(EngineOptions, self._options)

    def __repr__(self) -> str:
        if self._engine is None:
            state = "not initialized"
        else:
            mode = "v2" if self._mode().cache_manager else "v1"
            state = f"{mode}, listens at {self._listen_at or 'nothing'}, links to {self.links()}"
        return f"LLMDataDist({self._role}, cluster {self._cluster_id}, {state})"

    @property
    def cluster_id(self) -> int:
        """The id by which peers know this instance."""
        return self._cluster_id

    @property
    def role(self) -> typing.Optional[LLMRole]:
        """What it does; switch_role() changes it."""
        return self._role

    @property
    def kv_cache_manager(self) -> KvCacheManager:
        """Caches and transfers of v1 mode."""
        raise_if_true(self._mode().cache_manager,
                      "kv_cache_manager is not supported when llm.EnableCacheManager is 1")
        return typing.cast(KvCacheManager, self._kv_cache_manager)

    @property
    def cache_manager(self) -> CacheManager:
        """Caches and transfers of v2 mode."""
        raise_if_false(self._mode().cache_manager,
                       "cache_manager is not supported unless llm.EnableCacheManager is 1")
        return typing.cast(CacheManager, self._cache_manager)

    def switch_role(self, role: LLMRole,
                    switch_options: typing.Optional[typing.Dict[str, str]] = None) -> None:
        """Changes the role; caches stay.  To become a prompt: {"llm.listenIpInfo": "ip:port"}.

        v1 mode needs llm.EnableSwitchRole.  In v2 mode the listener follows the option: with it the
        instance listens there, without it no more.
        """
        check_isinstance("role", role, LLMRole, allow_none=False)
        check_dict("switch_options", switch_options, str, str, allow_none=True)
        mode = self._mode()
        given = switch_options or {}
        listen = given.get(LISTEN_IP_INFO, given.get(C_LISTEN_IP_INFO))
        if mode.cache_manager:
            raise_if_true(mode.hixl and listen is not None and listen != mode.listen,
                          "the listener can't be changed with llm.TransferBackend hixl")
            if mode.hixl:
                listen = mode.listen
        else:
            raise_if_true(role == self._role, "the role is {} already", role)
            raise_if_true(role == LLMRole.PROMPT and not listen,
                          "to become a prompt, switch_options needs {}", LISTEN_IP_INFO)
        self._ready().set_role(int(role), {} if not listen else {C_LISTEN_IP_INFO: listen})
        self._role, self._listen_at = role, listen or ""
        for manager in (self._kv_cache_manager, self._cache_manager):
            if manager is not None:
                manager._role = role

    # ---- links ----

    @staticmethod
    def _peers(clusters: Clusters, version_2: bool, unlink: bool = False) -> typing.List[_core.Peer]:
        def local(one: LLMClusterInfo) -> typing.List[_core.Address]:
            if version_2 and (unlink or not one.local_ip_info_list):
                return _FROM_ANYWHERE
            return [(ip_to_text(ip), port) for ip, port in one.local_ip_info_list]

        return [_core.Peer(one.remote_cluster_id, 0, local(one),
                           [(ip_to_text(ip), port) for ip, port in one.remote_ip_info_list])
                for one in clusters]

    @staticmethod
    def _check_link_arguments(clusters: Clusters, timeout: int) -> None:
        check_isinstance("clusters", clusters, [list, tuple], LLMClusterInfo, allow_none=False)
        check_int32("timeout", timeout)
        raise_if_false(timeout > 0, "timeout {} must be more than 0", timeout)

    def link_clusters(self, clusters: Clusters, timeout: int = 3000) -> Results:
        """Links to clusters that listen; `timeout` in milliseconds, for all of them.

        Returns (overall, [one code per cluster]): failures are returned, not raised.  In v1 mode only
        a decoder links.
        """
        self._check_link_arguments(clusters, timeout)
        engine, mode = self._ready(), self._mode()
        if mode.cache_manager:
            for one in clusters:
                raise_if_false(one.remote_ip_info_list, "{} needs remote_ip_info", one)
                raise_if_false(one.local_ip_info_list or mode.has_local_comm_res,
                               "{} needs local_ip_info", one)
        overall, codes, _ = engine.link(self._peers(clusters, mode.cache_manager), timeout)
        return overall, codes

    def unlink_clusters(self, clusters: Clusters, timeout: int = 3000, force: bool = False
                        ) -> Results:
        """Ends links; returns as link_clusters.  `force` drops this side's half only."""
        self._check_link_arguments(clusters, timeout)
        check_isinstance("force", force, bool, allow_none=False)
        engine, mode = self._ready(), self._mode()
        self._keeper.part(one.remote_cluster_id for one in clusters)
        overall, codes, _ = engine.unlink(self._peers(clusters, mode.cache_manager, True), timeout,
                                          force)
        return overall, codes

    def check_link_status(self, remote_cluster_id: int) -> None:
        """Raises LLMException unless the link to this cluster works: LLM_NOT_YET_LINK without a link,
        LLM_LINK_FAILED for one that is broken (unlink, then link again).  v1 mode, decoders."""
        check_uint64("remote_cluster_id", remote_cluster_id)
        engine, mode = self._ready(), self._mode()
        raise_if_true(mode.cache_manager,
                      "check_link_status is not supported when llm.EnableCacheManager is 1")
        raise_if_false(self._role == LLMRole.DECODER, "check_link_status is not supported by {}",
                       self._role)
        engine.check_link(remote_cluster_id)

    def link(self, comm_name: str, cluster_rank_info: typing.Dict[int, int], rank_table: str) -> int:
        """Links 2 to 4 clusters with each other; all of them call this with the same arguments.

        cluster_rank_info: {cluster id: rank}, in the order of the ranks.  rank_table: JSON, which need not
        be the same text everywhere; where the members meet follows from it
        (help("llm_datadist._meeting")).  Returns the id for unlink.  Waits llm.LinkTotalTime seconds for
        the others.

        A member that dies and comes back under its cluster id calls link again; the others need not.
        """
        check_isinstance("comm_name", comm_name, str, allow_none=False)
        check_dict("cluster_rank_info", cluster_rank_info, int, int)
        check_isinstance("rank_table", rank_table, str, allow_none=False)
        engine, mode = self._ready(), self._mode()
        raise_if_false(mode.cache_manager, "link needs llm.EnableCacheManager to be 1")
        raise_if_false(0 < len(comm_name) < 128, "comm_name must have 1 to 127 characters")
        for cluster, rank in cluster_rank_info.items():
            check_uint64("cluster id", cluster)
            check_uint32("rank", rank)
        members = {int(cluster): int(rank) for cluster, rank in cluster_rank_info.items()}
        ranks = list(members.values())
        raise_if_false(2 <= len(ranks) <= 4, "cluster_rank_info must have 2 to 4 members")
        raise_if_false(all(a < b for a, b in zip(ranks, ranks[1:])), "ranks must be ascending")
        raise_if_false(self._cluster_id in cluster_rank_info,
                       "cluster_rank_info lacks this cluster, {}", self._cluster_id)
        for cluster in members:
            raise_if_true(cluster != self._cluster_id and _is_linked(engine, cluster),
                          "there is a link to cluster {} already", cluster,
                          status_code=LLMStatusCode.LLM_ALREADY_LINK)
        meeting = _meeting.Meeting(comm_name, members, rank_table, self._cluster_id)
        comm = self._meet_and_link(engine, meeting, time.monotonic() + mode.link_timeout_s)
        comm_id = next(_comm_ids)
        self._comms[comm_id] = comm
        self.cache_manager._linked = True
        return comm_id

    def _meet_and_link(self, engine: _core.Engine, meeting: _meeting.Meeting, deadline: float) -> _Comm:
        self._keeper.drop(meeting.digest)
        ready_before = {cluster: engine.times_ready(cluster) for cluster in meeting.members}
        host = None
        try:
            if meeting.rank == meeting.host_rank:
                host = _meeting.Host(meeting, lambda: self._own_entry(engine, meeting))
                table = host.gather(deadline)
            else:
                table = _meeting.attend(meeting, self._own_entry(engine, meeting), deadline)
            comm = _Comm(meeting, table, ready_before)
            self._link_comm(engine, comm, deadline)
        except BaseException:
            if host is not None:
                host.close()
            raise
        kept = _meeting.Kept(meeting, host, lambda: bool(self._lost(engine, comm, kept.parted)),
                             lambda until: self._meet_again(engine, comm, kept.parted, until))
        self._keeper.keep(kept)
        return comm

    @staticmethod
    def _link_comm(engine: _core.Engine, comm: _Comm, deadline: float,
                   clusters: typing.Optional[typing.Container[int]] = None) -> None:
        """Links to all lower ranks, or to those of them that are named."""
        peers = [peer for peer in comm.linked_by_us if clusters is None or peer.cluster_id in clusters]
        if not peers:
            return
        left_ms = max(1, int((deadline - time.monotonic()) * 1000))
        overall, codes, error = engine.link(peers, min(left_ms, 2**31 - 1))
        if overall != LLMStatusCode.LLM_SUCCESS:
            made = [one for one, code in zip(peers, codes) if code == LLMStatusCode.LLM_SUCCESS]
            if made:
                engine.unlink(made, 1000, False)
            handle_llm_status(overall, "link", error)

    # Of the keeper's thread.

    @staticmethod
    def _lost(engine: _core.Engine, comm: _Comm, parted: typing.Container[int]
              ) -> typing.List[_core.Peer]:
        """Members of lower ranks without a link that works."""
        return [peer for peer in comm.linked_by_us
                if peer.cluster_id not in parted and not _is_linked(engine, peer.cluster_id)]

    def _meet_again(self, engine: _core.Engine, comm: _Comm, parted: typing.Container[int],
                    deadline: float) -> None:
        table = _meeting.attend(comm.meeting, self._own_entry(engine, comm.meeting), deadline)
        lost = self._lost(engine, comm, parted)
        broken = [peer for peer in lost if engine.link_info(peer.cluster_id) is not None]
        if broken:
            engine.unlink(broken, 1000, True)
        comm.update(table)
        self._link_comm(engine, comm, deadline + 1, {peer.cluster_id for peer in lost})

    def _own_entry(self, engine: _core.Engine, meeting: _meeting.Meeting) -> _meeting.Entry:
        """Where this engine can be reached; it begins to listen if it doesn't."""
        addresses = meeting.addresses[meeting.rank]
        best = next((one for one in addresses if _meeting.is_local(one)), addresses[0])
        with self._listen_lock:
            if not self._listen_at:
                # Not at an address that isn't this machine's, as behind a translation.
                is_ours = _meeting.literal(best) and _meeting.is_local(best)
                at = host_and_port(best if is_ours else _meeting.ANYWHERE, 0)
                engine.set_role(int(self._known_role()), {C_LISTEN_IP_INFO: at})
                self._listen_at = at
            at = self._listen_at.rsplit(":", 1)[0].strip("[]")
        return self._cluster_id, (best if at in (_meeting.ANYWHERE, "::") else at, engine.listen_port())

    # ----

    def _comm(self, comm_id: int) -> _Comm:
        check_uint64("comm_id", comm_id)
        self._ready()
        raise_if_false(comm_id in self._comms, "there is no comm {}", comm_id)
        return self._comms[comm_id]

    def unlink(self, comm_id: int) -> None:
        """Ends the links that link() made; every member calls it."""
        comm = self._comm(comm_id)
        engine = self._ready()
        self._keeper.drop(comm.meeting.digest)
        ended = (LLMStatusCode.LLM_SUCCESS, LLMStatusCode.LLM_NOT_YET_LINK)
        for cluster, peer in comm.peers.items():
            # In good order, if the peer is still there; otherwise our half is dropped.
            codes = [LLMStatusCode.LLM_UNLINK_FAILED]
            if _is_ready(engine, cluster):
                _, codes, error = engine.unlink([peer], 3000, False)
            if codes[0] not in ended + (LLMStatusCode.LLM_LINK_BUSY,):
                _, codes, error = engine.unlink([peer], 3000, True)
            if codes[0] not in ended:
                handle_llm_status(int(codes[0]), "unlink", error)
        del self._comms[comm_id]

    def query_register_mem_status(self, comm_id: int) -> RegisterMemStatus:
        """OK when all members of link() were met, PREPARING until then, FAILED if one is lost.

        Who came and has left in good order, by unlink or finalize, was met."""
        comm = self._comm(comm_id)
        engine = self._ready()
        status = RegisterMemStatus.OK
        for cluster in comm.peers:
            met = engine.times_ready(cluster) > comm.ready_before[cluster]
            info = engine.link_info(cluster)
            if info is not None and info["state"] == "broken":
                return RegisterMemStatus.FAILED
            if info is None and not met:
                status = RegisterMemStatus.PREPARING
        return status

    # ---- looking inside; the original has none of it ----

    def listen_port(self, device_index: int = 0) -> int:
        """The port at which device number `device_index` listens, also when 0 was asked for."""
        check_uint32("device_index", device_index)
        return self._ready().listen_port(device_index)

    def links(self) -> typing.List[int]:
        """The ids of the linked clusters."""
        return self._ready().links()

    def link_info(self, cluster_id: int) -> typing.Optional[typing.Dict[str, typing.Any]]:
        """"state" ("ready", "suspect" or "broken"), "transport" and "reason" of a link; None without one."""
        check_uint64("cluster_id", cluster_id)
        return self._ready().link_info(cluster_id)


def _finalize_forgotten() -> None:
    for datadist in list(_alive):
        try:
            datadist.finalize()
        except LLMException:
            pass


atexit.register(_finalize_forgotten)


def _after_fork() -> None:
    # The engines are the parent's; the child may init its own.
    for datadist in _alive:
        datadist._forget()
    _alive.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
