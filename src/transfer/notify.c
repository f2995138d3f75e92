#include "transfer/notify.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include "base/log.h"
#include "base/mem.h"
#include "base/os.h"

// Of each peer: an application that asks for notifications and never polls them must not cost all
// memory, and one peer must not take the others' room.
enum { NOTIFICATIONS_PER_PEER_MAX = 16384 };

// A peer of which notifications wait.
struct sender {
    struct lli_list node;
    uint64_t cluster_id;
    size_t count;
};

struct notification {
    struct lli_list node;
    struct sender *sender;
    size_t num_bytes;
    uint8_t bytes[];
};

struct lli_notifications {
    pthread_mutex_t lock;
    struct lli_list queue;   // guarded by lock
    struct lli_list senders; // guarded by lock
    int fd;
};

struct lli_notifications *
lli_notifications_open(void)
{
    struct lli_notifications *notifications = lli_calloc(1, sizeof(*notifications));
    if (notifications == NULL)
        return NULL;
    notifications->fd = lli_keep_fd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (notifications->fd < 0) {
        lli_free(notifications);
        return NULL;
    }
    pthread_mutex_init(&notifications->lock, NULL);
    lli_list_init(&notifications->queue);
    lli_list_init(&notifications->senders);
    return notifications;
}

void
lli_notifications_close(struct lli_notifications *notifications)
{
    if (notifications == NULL)
        return;
    LLI_LIST_FOR(node, &notifications->queue)
        lli_free(LLI_LIST_ENTRY(node, struct notification, node));
    LLI_LIST_FOR(node, &notifications->senders)
        lli_free(LLI_LIST_ENTRY(node, struct sender, node));
    close(notifications->fd);
    pthread_mutex_destroy(&notifications->lock);
    lli_free(notifications);
}

int
lli_notifications_fd(const struct lli_notifications *notifications)
{
    return notifications->fd;
}

static struct sender *
find_sender_locked(struct lli_notifications *notifications, uint64_t cluster_id)
{
    LLI_LIST_FOR(node, &notifications->senders) {
        struct sender *sender = LLI_LIST_ENTRY(node, struct sender, node);
        if (sender->cluster_id == cluster_id)
            return sender;
    }
    return NULL;
}

static struct sender *
find_or_add_sender_locked(struct lli_notifications *notifications, uint64_t cluster_id)
{
    struct sender *sender = find_sender_locked(notifications, cluster_id);
    if (sender != NULL)
        return sender;
    sender = lli_calloc(1, sizeof(*sender));
    if (sender == NULL)
        return NULL;
    sender->cluster_id = cluster_id;
    lli_list_append(&notifications->senders, &sender->node);
    return sender;
}

bool
lli_notifications_have_room(struct lli_notifications *notifications, uint64_t cluster_id)
{
    pthread_mutex_lock(&notifications->lock);
    const struct sender *sender = find_sender_locked(notifications, cluster_id);
    bool has_room = sender == NULL || sender->count < NOTIFICATIONS_PER_PEER_MAX;
    pthread_mutex_unlock(&notifications->lock);
    return has_room;
}

bool
lli_notifications_add(struct lli_notifications *notifications, uint64_t cluster_id,
                      const void *bytes, size_t num_bytes)
{
    struct notification *notification = lli_malloc(sizeof(*notification) + num_bytes);
    if (notification == NULL)
        return false;
    notification->num_bytes = num_bytes;
    memcpy(notification->bytes, bytes, num_bytes);
    pthread_mutex_lock(&notifications->lock);
    struct sender *sender = find_or_add_sender_locked(notifications, cluster_id);
    bool has_room = sender != NULL && sender->count < NOTIFICATIONS_PER_PEER_MAX;
    if (has_room) {
        notification->sender = sender;
        sender->count++;
        lli_list_append(&notifications->queue, &notification->node);
    }
    pthread_mutex_unlock(&notifications->lock);
    if (!has_room) {
        lli_free(notification);
        return false;
    }
    lli_event_signal(notifications->fd);
    return true;
}

// Returns whose it was.
static uint64_t
remove_locked(struct notification *notification)
{
    struct sender *sender = notification->sender;
    uint64_t cluster_id = sender->cluster_id;
    lli_list_remove(&notification->node);
    if (--sender->count == 0) {
        lli_list_remove(&sender->node);
        lli_free(sender);
    }
    return cluster_id;
}

llm_status
lli_notifications_take(struct lli_notifications *notifications, uint64_t *ret_cluster_id, void *buf,
                       size_t size, size_t *ret_bytes)
{
    llm_status status = LLM_NO_NOTIFICATION;
    struct notification *taken = NULL;
    uint64_t cluster_id = 0;
    pthread_mutex_lock(&notifications->lock);
    if (!lli_list_empty(&notifications->queue)) {
        taken = LLI_LIST_ENTRY(notifications->queue.next, struct notification, node);
        *ret_bytes = taken->num_bytes;
        status = taken->num_bytes <= size ? LLM_SUCCESS : LLM_PARAM_INVALID;
    }
    if (status == LLM_SUCCESS)
        cluster_id = remove_locked(taken);
    pthread_mutex_unlock(&notifications->lock);
    if (status == LLM_PARAM_INVALID)
        return lli_fail(status, "transfer", "the notification has %zu bytes, there is room for %zu",
                        *ret_bytes, size);
    if (status == LLM_SUCCESS) {
        if (taken->num_bytes > 0)
            memcpy(buf, taken->bytes, taken->num_bytes);
        if (ret_cluster_id != NULL)
            *ret_cluster_id = cluster_id;
        lli_free(taken);
    }
    return status;
}
