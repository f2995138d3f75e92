// Links (§6, §13.4).
#include <stdio.h>

#include "api/check.h"
#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"
#include "link/connect.h"
#include "link/events.h"

enum { CLUSTERS_PER_CALL_MAX = 16 };

// One call, its arguments checked and copied.
struct call {
    llm_datadist *dd;
    const char *name;
    size_t num_clusters;
    struct cluster {
        struct call *call;
        uint64_t id;
        struct lli_endpoint local[LLI_NUM_DEVICES_MAX];
        struct lli_endpoint remote[LLI_NUM_DEVICES_MAX];
        llm_status result;
        char why[256]; // of a failed result
        bool attempted;
        bool has_thread;
        pthread_t thread;
        struct lli_link *link; // to be unlinked; held
    } * clusters;              // num_clusters
    bool unlinks;
    bool force;
    bool version_2;
    uint64_t deadline_ns;
};

// ---- checks ----

// Of whatever version; checked before.
static llm_cluster_info
cluster_at(const llm_cluster_info *clusters, size_t index)
{
    llm_cluster_info info = {0};
    (void)LLI_CHECK_STRUCT(LLI_STRUCT_AT(clusters, llm_cluster_info, index), llm_cluster_info,
                           &info);
    return info;
}

static llm_status
check_ips(const llm_ip_info *infos, size_t num_infos, size_t cluster, const char *side)
{
    struct lli_endpoint place;
    for (size_t i = 0; infos != NULL && i < num_infos; i++) {
        if (!lli_endpoint_parse(infos[i].ip, infos[i].port, &place))
            return lli_fail(LLM_PARAM_INVALID, "link",
                            "clusters[%zu].%s_ip_infos[%zu].ip is \"%s\", expected an IPv4 or "
                            "IPv6 address or the name of a host",
                            cluster, side, i, infos[i].ip == NULL ? "" : infos[i].ip);
    }
    return LLM_SUCCESS;
}

// Checks 2 and 3 of §6.1.  Nobody looks at the local addresses of an unlink of version 2.
static llm_status
check_plain(const llm_cluster_info *clusters, size_t num_clusters, int32_t timeout_ms,
            bool checks_local)
{
    if (timeout_ms <= 0)
        return lli_fail(LLM_PARAM_INVALID, "link", "timeout is %d ms, expected more than 0",
                        timeout_ms);
    if (clusters == NULL && num_clusters > 0)
        return lli_fail(LLM_PARAM_INVALID, "link", "clusters is NULL, num_clusters is %zu",
                        num_clusters);
    for (size_t i = 0; i < num_clusters; i++) {
        llm_cluster_info info;
        LLI_TRY(LLI_CHECK_STRUCT(LLI_STRUCT_AT(clusters, llm_cluster_info, i), llm_cluster_info,
                                 &info));
        LLI_TRY(check_ips(info.remote_ip_infos, info.num_remote_ip_infos, i, "remote"));
        if (checks_local)
            LLI_TRY(check_ips(info.local_ip_infos, info.num_local_ip_infos, i, "local"));
    }
    return LLM_SUCCESS;
}

// Nobody listens at port 0.  An unlink doesn't look at ports.
static llm_status
check_ports(const llm_cluster_info *clusters, size_t num_clusters)
{
    for (size_t i = 0; i < num_clusters; i++) {
        llm_cluster_info info = cluster_at(clusters, i);
        for (size_t d = 0; info.remote_ip_infos != NULL && d < info.num_remote_ip_infos; d++) {
            if (info.remote_ip_infos[d].port == 0)
                return lli_fail(LLM_PARAM_INVALID, "link",
                                "clusters[%zu].remote_ip_infos[%zu].port is 0, expected 1..65535, "
                                "where the peer listens",
                                i, d);
        }
    }
    return LLM_SUCCESS;
}

static bool
same_addresses(const llm_cluster_info *a, const llm_cluster_info *b, size_t num_addresses)
{
    for (size_t i = 0; i < num_addresses; i++) {
        if (strcmp(a->local_ip_infos[i].ip, b->local_ip_infos[i].ip) != 0 ||
            a->local_ip_infos[i].port != b->local_ip_infos[i].port)
            return false;
    }
    return true;
}

// §13.4: one address of the peer's; a source address only where nothing else names it.
static llm_status
check_lists_version_2(const struct call *call, const llm_cluster_info *clusters,
                      size_t num_clusters)
{
    for (size_t i = 0; i < num_clusters; i++) {
        llm_cluster_info info = cluster_at(clusters, i);
        size_t num_local = info.local_ip_infos == NULL ? 0 : info.num_local_ip_infos;
        size_t num_remote = info.remote_ip_infos == NULL ? 0 : info.num_remote_ip_infos;
        // An unlink finds its link by the id.
        if (call->unlinks && num_remote > 1 && !call->force)
            return lli_fail(LLM_PARAM_INVALID, "link",
                            "clusters[%zu] has %zu remote addresses, expected one at most", i,
                            num_remote);
        if (call->unlinks)
            continue;
        if (num_remote != 1 || (num_local != 1 && !call->dd->options.has_local_comm_res))
            return lli_fail(LLM_PARAM_INVALID, "link",
                            "clusters[%zu] has %zu local and %zu remote addresses, expected one of "
                            "each",
                            i, num_local, num_remote);
    }
    return LLM_SUCCESS;
}

// Checks 6 to 8.
static llm_status
check_lists(const struct call *call, const llm_cluster_info *clusters, size_t num_clusters)
{
    const llm_datadist *dd = call->dd;
    size_t num_devices = dd->options.num_devices;
    if (num_clusters == 0)
        return lli_fail(LLM_PARAM_INVALID, "link", "clusters is empty");
    if (call->version_2)
        return check_lists_version_2(call, clusters, num_clusters);
    llm_cluster_info first = cluster_at(clusters, 0);
    for (size_t i = 0; i < num_clusters; i++) {
        llm_cluster_info info = cluster_at(clusters, i);
        size_t num_local = info.local_ip_infos == NULL ? 0 : info.num_local_ip_infos;
        size_t num_remote = info.remote_ip_infos == NULL ? 0 : info.num_remote_ip_infos;
        if (num_local != num_devices || num_remote != num_devices)
            return lli_fail(LLM_PARAM_INVALID, "link",
                            "clusters[%zu] has %zu local and %zu remote addresses, expected %zu of "
                            "each, one per device",
                            i, num_local, num_remote, num_devices);
        if (!same_addresses(&info, &first, num_local))
            return lli_fail(LLM_PARAM_INVALID, "link",
                            "the local addresses of clusters[%zu] differ from those of clusters[0]",
                            i);
    }
    if (num_clusters > CLUSTERS_PER_CALL_MAX)
        return lli_fail(LLM_CLUSTER_NUM_EXCEED_LIMIT, "link",
                        "%zu clusters in one call, at most %d", num_clusters,
                        CLUSTERS_PER_CALL_MAX);
    return LLM_SUCCESS;
}

// ---- one link or unlink call at a time (§10.2) ----

static llm_status
take_turn(struct call *call)
{
    struct lli_node *node = &call->dd->node;
    bool in_time = true;
    pthread_mutex_lock(&node->links_lock);
    while (node->linking && in_time)
        in_time = lli_cond_wait_until(&node->linking_ended, &node->links_lock, call->deadline_ns);
    bool mine = !node->linking;
    if (mine)
        node->linking = true;
    pthread_mutex_unlock(&node->links_lock);
    if (!mine)
        return lli_fail(LLM_PROCESSING_LINK, "link",
                        "%s: another link or unlink call runs longer than the timeout", call->name);
    return LLM_SUCCESS;
}

static void
end_turn(struct call *call)
{
    struct lli_node *node = &call->dd->node;
    pthread_mutex_lock(&node->links_lock);
    node->linking = false;
    pthread_cond_broadcast(&node->linking_ended);
    pthread_mutex_unlock(&node->links_lock);
}

// ---- copying arguments ----

// An unlink of version 2 doesn't compare addresses.
static bool
reads_local(const struct call *call)
{
    return !call->version_2 || !call->unlinks;
}

static struct lli_endpoint
to_place(const llm_ip_info *info)
{
    struct lli_endpoint place = {0};
    // Checked before.
    (void)lli_endpoint_parse(info->ip, info->port, &place);
    return place;
}

static llm_status
copy_clusters(struct call *call, const llm_cluster_info *clusters, size_t num_clusters)
{
    call->clusters = lli_calloc(num_clusters, sizeof(*call->clusters));
    if (call->clusters == NULL)
        return lli_fail(LLM_OUT_OF_MEMORY, "link", "%s: out of memory", call->name);
    call->num_clusters = num_clusters;
    for (size_t i = 0; i < num_clusters; i++) {
        llm_cluster_info info = cluster_at(clusters, i);
        struct cluster *cluster = &call->clusters[i];
        cluster->call = call;
        cluster->id = info.remote_cluster_id;
        // Missing ones (§13.4): any source address.
        for (size_t d = 0; d < call->dd->options.num_devices; d++) {
            (void)lli_endpoint_parse("0.0.0.0", 0, &cluster->local[d]);
            if (reads_local(call) && info.local_ip_infos != NULL && d < info.num_local_ip_infos)
                cluster->local[d] = to_place(&info.local_ip_infos[d]);
            // In version 2 programs give the port at which they listen, or the peer's (§13.4).
            if (call->version_2)
                cluster->local[d].port = 0;
            if (info.remote_ip_infos != NULL && d < info.num_remote_ip_infos)
                cluster->remote[d] = to_place(&info.remote_ip_infos[d]);
        }
    }
    return LLM_SUCCESS;
}

static bool
is_repeated(const struct call *call, size_t index)
{
    // In version 2 it may stand for "whoever answers" (§13.4).
    if (call->version_2 && call->clusters[index].id == 0)
        return false;
    for (size_t i = 0; i < index; i++) {
        if (call->clusters[i].id == call->clusters[index].id)
            return true;
    }
    return false;
}

// From here on every cluster has a result.
static void
report(struct call *call, llm_status *rets, size_t *ret_num_rets)
{
    for (size_t i = 0; i < call->num_clusters; i++)
        call->clusters[i].result = lli_transfer_status(call->dd, call->clusters[i].result);
    for (size_t i = 0; rets != NULL && i < call->num_clusters; i++)
        rets[i] = call->clusters[i].result;
    if (ret_num_rets != NULL)
        *ret_num_rets = call->num_clusters;
}

static llm_status
summarise(const struct call *call, llm_status failed, bool (*is_failure)(llm_status result))
{
    size_t num_failed = 0;
    const char *why = "";
    const char *last_why = "";
    llm_status first = LLM_SUCCESS;
    llm_status last = LLM_SUCCESS;
    for (size_t i = 0; i < call->num_clusters; i++) {
        llm_status result = call->clusters[i].result;
        if (is_failure(result) && num_failed++ == 0)
            why = call->clusters[i].why;
        if (first == LLM_SUCCESS && result != LLM_SUCCESS)
            first = result;
        if (result != LLM_SUCCESS) {
            last = result;
            last_why = call->clusters[i].why;
        }
    }
    if (call->version_2 && last != LLM_SUCCESS)
        lli_set_last_error(last_why); // another thread may have found it
    if (call->version_2)
        return last;
    if (num_failed == 0)
        return first;
    // Each has been told of in the log; the caller learns how many there are.
    char text[sizeof(call->clusters->why) + 96];
    snprintf(text, sizeof(text), "link: %s: %zu of %zu clusters failed: %s", call->name, num_failed,
             call->num_clusters, why);
    lli_set_last_error(text);
    return failed;
}

// The text of this thread's failure, for the thread that sums up.
static void
keep_reason(struct cluster *cluster)
{
    if (cluster->result != LLM_SUCCESS)
        llm_last_error(cluster->why, sizeof(cluster->why));
}

// ---- linking ----

static bool
is_linked(struct call *call, uint64_t cluster_id)
{
    struct lli_link *link = lli_links_find(&call->dd->node, cluster_id);
    if (link == NULL)
        return false;
    bool usable = lli_link_is_ready(link);
    lli_link_put(link);
    return usable;
}

static void *
connect_cluster(void *arg)
{
    struct cluster *cluster = arg;
    struct lli_link_target target = {
        .cluster_id = cluster->id,
        .any_cluster = cluster->call->version_2,
        .local = cluster->local,
        .remote = cluster->remote,
    };
    cluster->result =
        lli_link_connect(&cluster->call->dd->node, &target, cluster->call->deadline_ns);
    keep_reason(cluster);
    return NULL;
}

// All at once, so that one that doesn't answer doesn't take the others' time.
static void
connect_some(struct call *call, size_t first, size_t end)
{
    struct cluster *last = NULL;
    for (size_t i = first; i < end; i++) {
        struct cluster *cluster = &call->clusters[i];
        if (!cluster->attempted)
            continue;
        if (last != NULL)
            last->has_thread =
                lli_thread_start(&last->thread, "llm-link", connect_cluster, last) == 0;
        if (last != NULL && !last->has_thread)
            connect_cluster(last);
        last = cluster;
    }
    // The last one in this thread; usually it is the only one.
    if (last != NULL)
        connect_cluster(last);
    for (size_t i = first; i < end; i++) {
        if (call->clusters[i].has_thread)
            pthread_join(call->clusters[i].thread, NULL);
    }
}

// Version 2 has no limit on the clusters of a call.
static void
connect_all(struct call *call)
{
    for (size_t i = 0; i < call->num_clusters; i += CLUSTERS_PER_CALL_MAX)
        connect_some(call, i, lli_min(i + CLUSTERS_PER_CALL_MAX, call->num_clusters));
}

static bool
is_link_failure(llm_status result)
{
    return result == LLM_LINK_FAILED || result == LLM_WAIT_PROC_TIMEOUT || result == LLM_FAILED;
}

static llm_status
link_in_turn(struct call *call, llm_status *rets, size_t *ret_num_rets)
{
    for (size_t i = 0; i < call->num_clusters; i++) {
        struct cluster *cluster = &call->clusters[i];
        if (is_repeated(call, i))
            cluster->result =
                lli_fail(LLM_REPEAT_REQUEST, "link", "cluster %llu appears twice in one call",
                         (unsigned long long)cluster->id);
        else if (is_linked(call, cluster->id))
            cluster->result = lli_fail(LLM_ALREADY_LINK, "link", "cluster %llu is linked already",
                                       (unsigned long long)cluster->id);
        else
            cluster->attempted = true;
        keep_reason(cluster);
    }
    connect_all(call);
    report(call, rets, ret_num_rets);
    return summarise(call, LLM_LINK_FAILED, is_link_failure);
}

static llm_status
run_call(struct call *call, const llm_cluster_info *clusters, size_t num_clusters, llm_status *rets,
         size_t *ret_num_rets,
         llm_status (*in_turn)(struct call *call, llm_status *rets, size_t *ret_num_rets))
{
    if (ret_num_rets != NULL)
        *ret_num_rets = 0;
    LLI_TRY(take_turn(call));
    llm_status status = check_lists(call, clusters, num_clusters);
    if (status == LLM_SUCCESS && !call->unlinks)
        status = check_ports(clusters, num_clusters);
    if (status == LLM_SUCCESS)
        status = copy_clusters(call, clusters, num_clusters);
    if (status == LLM_SUCCESS)
        status = in_turn(call, rets, ret_num_rets);
    lli_free(call->clusters);
    end_turn(call);
    return status;
}

llm_status
llm_link_clusters(llm_datadist *dd, const llm_cluster_info *clusters, size_t num_clusters,
                  llm_status *rets, size_t *ret_num_rets, int32_t timeout_ms)
{
    LLI_TRY(lli_check_initialized(dd, "llm_link_clusters"));
    LLI_TRY(check_plain(clusters, num_clusters, timeout_ms, true));
    int role = atomic_load(&dd->role);
    bool version_2 = atomic_load(&dd->version_2);
    if (role != LLM_ROLE_DECODER && !version_2)
        return lli_fail(LLM_PARAM_INVALID, "link", "a %s can't link, only a Decoder can",
                        lli_role_name(role));
    struct call call = {
        .dd = dd,
        .name = "llm_link_clusters",
        .version_2 = version_2,
        .deadline_ns = lli_deadline_after_ms((uint64_t)timeout_ms),
    };
    return run_call(&call, clusters, num_clusters, rets, ret_num_rets, link_in_turn);
}

// ---- unlinking ----

// Ports are not compared.
static bool
is_host_of(const struct call *call, const struct lli_endpoint *given,
           const struct lli_endpoint *linked)
{
    char why[LLI_REASON_BYTES];
    bool timed_out;
    struct lli_address found[LLI_LOOKUP_MAX];
    // A name may lead elsewhere by now.
    if (strcmp(given->host, linked->host) == 0)
        return true;
    size_t num_found =
        lli_endpoint_resolve(given, call->deadline_ns, found, &timed_out, why, sizeof(why));
    for (size_t i = 0; i < num_found; i++) {
        if (lli_address_is_same_host(&found[i], &linked->address))
            return true;
    }
    return false;
}

static bool
has_addresses(const struct cluster *cluster, const struct lli_link *link)
{
    for (size_t d = 0; d < cluster->call->dd->options.num_devices; d++) {
        if (!is_host_of(cluster->call, &cluster->remote[d], &link->remote[d]))
            return false;
        // A prompt looks its links up by the remote address alone.
        if (link->connected_by_us &&
            !is_host_of(cluster->call, &cluster->local[d], &link->local[d]))
            return false;
    }
    return true;
}

static llm_status
not_linked(const struct cluster *cluster)
{
    lli_log(LLM_LOG_INFO, "link", "there is no link to cluster %llu to remove",
            (unsigned long long)cluster->id);
    return LLM_NOT_YET_LINK;
}

// Finds the link to be removed, or says why there is none.  The link is held.
static llm_status
choose_link(struct call *call, size_t index, struct lli_link **ret_link)
{
    struct cluster *cluster = &call->clusters[index];
    // By the time of a second one the first has removed the link.
    if (call->version_2 && is_repeated(call, index))
        return LLM_SUCCESS;
    struct lli_link *link = lli_links_find(&call->dd->node, cluster->id);
    if (link == NULL)
        return call->version_2 ? LLM_SUCCESS : not_linked(cluster);
    if (call->version_2) {
        *ret_link = link;
        return LLM_SUCCESS;
    }
    llm_status status = LLM_SUCCESS;
    bool by_us = link->connected_by_us;
    if (!has_addresses(cluster, link)) {
        status = by_us ? lli_fail(LLM_PARAM_INVALID, "link",
                                  "the addresses given for cluster %llu are not those of its link",
                                  (unsigned long long)cluster->id)
                       : not_linked(cluster);
    } else if (is_repeated(call, index)) {
        status =
            by_us ? lli_fail(LLM_REPEAT_REQUEST, "link", "cluster %llu appears twice in one call",
                             (unsigned long long)cluster->id)
                  : not_linked(cluster);
    }
    if (status == LLM_SUCCESS)
        *ret_link = link;
    else
        lli_link_put(link);
    return status;
}

struct begin_unlink {
    struct lli_link *link;
    bool tell_peer;
    bool is_active; // with transfers of this side's
    bool busy;
    bool unsent; // there was no memory, or the connection had just failed
};

// On the loop's thread: nothing of the peer's may be under way, then the peer is told.
static void
begin_unlink(void *arg)
{
    struct begin_unlink *begin = arg;
    struct lli_link *link = begin->link;
    begin->is_active = lli_engine_link_is_active(link);
    begin->busy = lli_engine_link_has_work(link);
    if (!begin->busy && begin->tell_peer)
        lli_link_send(link, LLI_UNLINK, 0, NULL, 0);
    begin->unsent = begin->tell_peer && link->control != NULL && link->control->why != NULL;
}

// True if the link was broken by then, which has been told.
static bool
set_unlinking(struct lli_link *link, bool unlinking)
{
    pthread_mutex_lock(&link->node->links_lock);
    link->unlinking = unlinking;
    link->unlink_answered = false;
    bool is_broken = link->broken;
    pthread_mutex_unlock(&link->node->links_lock);
    return is_broken;
}

// A link that breaks while it is being unlinked is no news, unless it stays.
static void
tell_if_broken(struct lli_link *link)
{
    pthread_mutex_lock(&link->node->links_lock);
    if (link->broken && !lli_list_empty(&link->in_table))
        lli_events_add_locked(link, LLM_LINK_BROKEN);
    pthread_mutex_unlock(&link->node->links_lock);
}

// Waits for the peer's word.  A peer that closes the connection has removed its end as well.
static llm_status
await_answer(struct lli_link *link, uint64_t deadline_ns)
{
    struct lli_node *node = link->node;
    bool in_time = true;
    pthread_mutex_lock(&node->links_lock);
    while (!link->unlink_answered && !link->broken && in_time)
        in_time = lli_cond_wait_until(&node->links_changed, &node->links_lock, deadline_ns);
    llm_status status = LLM_WAIT_PROC_TIMEOUT;
    if (link->unlink_answered)
        status = link->unlink_answer;
    else if (link->broken)
        status = LLM_SUCCESS;
    pthread_mutex_unlock(&node->links_lock);
    return status;
}

// What the peer does on the link holds a forced unlink up for as long as it may hold up memory that
// is unregistered; then it ends with the link.
static void
wait_for_peer(const struct call *call, struct begin_unlink *begin)
{
    struct lli_node *node = begin->link->node;
    uint64_t until_ns = lli_min(call->deadline_ns, lli_now_ns() + node->registry->patience_ns);
    while (begin->busy && !begin->is_active && lli_now_ns() < until_ns) {
        pthread_mutex_lock(&node->links_lock);
        (void)lli_cond_wait_until(&node->links_changed, &node->links_lock,
                                  lli_min(until_ns, lli_now_ns() + LLI_MS_TO_NS(5)));
        pthread_mutex_unlock(&node->links_lock);
        lli_loop_call(node->loop, begin_unlink, begin);
    }
    if (begin->busy && !begin->is_active)
        lli_log(
            LLM_LOG_WARN, "link",
            "the link to cluster %llu is removed by force although the peer has transfers on it",
            (unsigned long long)begin->link->peer.cluster_id);
    begin->busy = begin->is_active;
}

static llm_status
unlink_one(struct call *call, struct lli_link *link)
{
    bool was_broken = lli_link_is_broken(link);
    // A prompt never tells its peer; in version 2 whoever unlinks does.
    bool should_tell = (link->connected_by_us || call->version_2) && !call->force;
    bool tell_peer = should_tell && !was_broken;
    if (should_tell && was_broken && call->version_2)
        return lli_fail(LLM_UNLINK_FAILED, "link",
                        "cluster %llu can't be told about the unlink: %s; force it",
                        (unsigned long long)link->peer.cluster_id, link->broken_reason);
    struct begin_unlink begin = {.link = link, .tell_peer = tell_peer};
    llm_status status = LLM_SUCCESS;
    bool is_told = set_unlinking(link, true);
    lli_loop_call(call->dd->node.loop, begin_unlink, &begin);
    if (call->force)
        wait_for_peer(call, &begin);
    if (!begin.busy && tell_peer && !begin.unsent)
        status = await_answer(link, call->deadline_ns);
    if (begin.busy || status == LLM_LINK_BUSY) {
        (void)set_unlinking(link, false);
        if (!is_told)
            tell_if_broken(link);
        return lli_fail(LLM_LINK_BUSY, "link", "a transfer runs on the link to cluster %llu",
                        (unsigned long long)link->peer.cluster_id);
    }
    lli_links_remove(link);
    if (status != LLM_SUCCESS)
        return lli_fail(status, "link",
                        "cluster %llu didn't answer to the unlink; the link is gone here",
                        (unsigned long long)link->peer.cluster_id);
    if (should_tell && (was_broken || begin.unsent))
        return lli_fail(LLM_NOTIFY_PROMPT_UNLINK_FAILED, "link",
                        "cluster %llu could not be told about the unlink: %s; the link is gone "
                        "here",
                        (unsigned long long)link->peer.cluster_id,
                        was_broken ? link->broken_reason : "sending failed, or out of memory");
    lli_log(LLM_LOG_INFO, "link", "the link to cluster %llu is removed",
            (unsigned long long)link->peer.cluster_id);
    return LLM_SUCCESS;
}

static bool
is_unlink_failure(llm_status result)
{
    return result != LLM_SUCCESS && result != LLM_NOT_YET_LINK;
}

static llm_status
unlink_in_turn(struct call *call, llm_status *rets, size_t *ret_num_rets)
{
    for (size_t i = 0; i < call->num_clusters; i++) {
        call->clusters[i].result = choose_link(call, i, &call->clusters[i].link);
        keep_reason(&call->clusters[i]);
    }
    for (size_t i = 0; i < call->num_clusters; i++) {
        struct cluster *cluster = &call->clusters[i];
        if (cluster->link == NULL)
            continue;
        cluster->result = unlink_one(call, cluster->link);
        keep_reason(cluster);
        lli_link_put(cluster->link);
    }
    report(call, rets, ret_num_rets);
    llm_status status = summarise(call, LLM_UNLINK_FAILED, is_unlink_failure);
    // What was not linked need not be unlinked.
    return status == LLM_NOT_YET_LINK ? LLM_SUCCESS : status;
}

llm_status
llm_unlink_clusters(llm_datadist *dd, const llm_cluster_info *clusters, size_t num_clusters,
                    llm_status *rets, size_t *ret_num_rets, int32_t timeout_ms, int force)
{
    LLI_TRY(lli_check_initialized(dd, "llm_unlink_clusters"));
    bool version_2 = atomic_load(&dd->version_2);
    LLI_TRY(check_plain(clusters, num_clusters, timeout_ms, !version_2));
    if (atomic_load(&dd->role) == LLM_ROLE_MIX && !version_2)
        return lli_fail(LLM_PARAM_INVALID, "link", "a Mix has no links to remove");
    struct call call = {
        .dd = dd,
        .name = "llm_unlink_clusters",
        .version_2 = version_2,
        .unlinks = true,
        .force = force != 0,
        .deadline_ns = lli_deadline_after_ms((uint64_t)timeout_ms),
    };
    return run_call(&call, clusters, num_clusters, rets, ret_num_rets, unlink_in_turn);
}
