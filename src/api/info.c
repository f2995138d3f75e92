// Looking inside.
#include <stdio.h>

#include "api/check.h"
#include "base/lock.h"
#include "base/log.h"
#include "device/copy.h"
#include "device/crc32c.h"
#include "link/events.h"

llm_status
llm_get_link_info(llm_datadist *dd, uint64_t cluster_id, llm_link_info *info)
{
    llm_link_info known;
    LLI_TRY(lli_check_initialized(dd, "llm_get_link_info"));
    LLI_TRY(LLI_CHECK_STRUCT(info, llm_link_info, &known));
    struct lli_link *link = lli_links_find(&dd->node, cluster_id);
    if (link == NULL)
        return lli_fail(LLM_NOT_YET_LINK, "api", "there is no link to cluster %llu",
                        (unsigned long long)cluster_id);
    pthread_mutex_lock(&dd->node.links_lock);
    lli_link_describe_locked(link, &known);
    pthread_mutex_unlock(&dd->node.links_lock);
    lli_link_put(link);
    LLI_WRITE_STRUCT(&known, llm_link_info, info);
    return LLM_SUCCESS;
}

llm_status
llm_check_link_status(llm_datadist *dd, uint64_t cluster_id)
{
    LLI_TRY(lli_check_initialized(dd, "llm_check_link_status"));
    struct lli_link *link = lli_links_find(&dd->node, cluster_id);
    if (link == NULL)
        return lli_fail(LLM_NOT_YET_LINK, "api", "there is no link to cluster %llu",
                        (unsigned long long)cluster_id);
    llm_link_info info = {0};
    pthread_mutex_lock(&dd->node.links_lock);
    lli_link_describe_locked(link, &info);
    pthread_mutex_unlock(&dd->node.links_lock);
    lli_link_put(link);
    if (info.state == LLM_LINK_READY)
        return LLM_SUCCESS;
    if (info.state == LLM_LINK_SUSPECT)
        return lli_transfer_status(dd, lli_fail(LLM_WAIT_PROC_TIMEOUT, "api",
                                                "the link to cluster %llu is suspect: %s",
                                                (unsigned long long)cluster_id, info.reason));
    return lli_fail(LLM_LINK_FAILED, "api", "the link to cluster %llu is broken: %s",
                    (unsigned long long)cluster_id, info.reason);
}

llm_status
llm_poll_link_event(llm_datadist *dd, llm_link_info *info)
{
    llm_link_info known;
    LLI_TRY(lli_check_initialized(dd, "llm_poll_link_event"));
    LLI_TRY(LLI_CHECK_STRUCT(info, llm_link_info, &known));
    if (!lli_events_take(&dd->node, &known))
        return LLM_NO_LINK_EVENT;
    LLI_WRITE_STRUCT(&known, llm_link_info, info);
    return LLM_SUCCESS;
}

int
llm_link_event_fd(llm_datadist *dd)
{
    if (lli_check_initialized(dd, "llm_link_event_fd") != LLM_SUCCESS)
        return -1;
    return dd->node.event_fd;
}

llm_status
llm_list_links(llm_datadist *dd, uint64_t *cluster_ids, size_t room, size_t *ret_num_links)
{
    LLI_TRY(lli_check_initialized(dd, "llm_list_links"));
    if (ret_num_links == NULL || (cluster_ids == NULL && room > 0))
        return lli_fail(LLM_PARAM_INVALID, "api", "llm_list_links: %s is NULL",
                        ret_num_links == NULL ? "ret_num_links" : "cluster_ids");
    size_t num_links = 0;
    pthread_mutex_lock(&dd->node.links_lock);
    LLI_LIST_FOR(item, &dd->node.links) {
        struct lli_link *link = LLI_LIST_ENTRY(item, struct lli_link, in_table);
        if (num_links < room)
            cluster_ids[num_links] = link->peer.cluster_id;
        num_links++;
    }
    pthread_mutex_unlock(&dd->node.links_lock);
    *ret_num_links = num_links;
    return LLM_SUCCESS;
}

llm_status
llm_get_listen_port(llm_datadist *dd, size_t device_index, uint16_t *ret_port)
{
    LLI_TRY(lli_check_initialized(dd, "llm_get_listen_port"));
    if (ret_port == NULL)
        return lli_fail(LLM_PARAM_INVALID, "api", "llm_get_listen_port: ret_port is NULL");
    // A registration may begin to listen.
    lli_lock(&dd->life_lock);
    size_t num_devices = dd->listeners.num_devices;
    if (device_index < num_devices)
        *ret_port = dd->listeners.of_device[device_index]->place.port;
    lli_unlock(&dd->life_lock);
    if (device_index >= num_devices)
        return lli_fail(LLM_PARAM_INVALID, "api",
                        "llm_get_listen_port: device_index is %zu, %zu device(s) listen",
                        device_index, num_devices);
    return LLM_SUCCESS;
}

llm_status
llm_get_option_info(size_t index, llm_option_info *info)
{
    llm_option_info known;
    size_t num_rows;
    const struct lli_option_row *rows = lli_option_table(&num_rows);
    LLI_TRY(LLI_CHECK_STRUCT(info, llm_option_info, &known));
    bool exists = index < num_rows;
    known.key = exists ? rows[index].key : NULL;
    known.default_value = exists ? rows[index].value_default : NULL;
    known.help = exists ? rows[index].help : NULL;
    LLI_WRITE_STRUCT(&known, llm_option_info, info);
    return LLM_SUCCESS;
}

#define STRING_(x) #x
#define STRING(x) STRING_(x)

const char *
llm_version(void)
{
    return STRING(LLM_VERSION_MAJOR) "." STRING(LLM_VERSION_MINOR) "." STRING(LLM_VERSION_PATCH);
}

size_t
llm_describe(char *buf, size_t size)
{
    int length = snprintf(buf, buf == NULL ? 0 : size,
                          "version: %s\n"
                          "compiler: %s\n"
                          "copy kernel: %s\n"
                          "checksum kernel: %s\n"
                          "devices: host\n"
                          "transports: local,shm,tcp\n"
                          "wire version: %u\n"
                          "directory version: %u\n",
                          llm_version(), __VERSION__, lli_copy_kernel_name(),
                          lli_crc32c_kernel_name(), LLI_MESSAGE_VERSION, LLI_SEGMENT_VERSION);
    return length > 0 ? (size_t)length : 0;
}
