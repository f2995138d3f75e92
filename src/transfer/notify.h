// Notifications that peers have sent with their transfers, waiting to be polled.
#ifndef LLI_NOTIFY_H
#define LLI_NOTIFY_H

#include "link/link.h"

// NULL on failure.
struct lli_notifications *lli_notifications_open(void);
void lli_notifications_close(struct lli_notifications *notifications);

// An eventfd, readable while something may have arrived.
int lli_notifications_fd(const struct lli_notifications *notifications);

// Keeps a copy.  False if there is no room, of which each peer has its own: the application doesn't
// poll.  [any thread]
bool lli_notifications_add(struct lli_notifications *notifications, uint64_t cluster_id,
                           const void *bytes, size_t num_bytes);
// Would another one of that peer find room now?
bool lli_notifications_have_room(struct lli_notifications *notifications, uint64_t cluster_id);

// As llm_poll_notification.  [any thread]
llm_status lli_notifications_take(struct lli_notifications *notifications, uint64_t *ret_cluster_id,
                                  void *buf, size_t size, size_t *ret_bytes);

#endif
