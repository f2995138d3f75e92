// Part of each copy of the library: between the steps of the protocol that readers and owners of a
// cache follow in shared memory, another coroutine may go on, though no system call is made there.
#include <pthread.h>

#include "cache/segment.h"

void sim_critical_point(void);
int sim_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*entry)(void *),
                       void *arg);

// GCC's own library has one of this name, for split stacks.
int
__wrap_pthread_create(pthread_t *thread, const pthread_attr_t *attr, void *(*entry)(void *),
                      void *arg)
{
    return sim_pthread_create(thread, attr, entry, arg);
}

#define POINT_AROUND(result, name, parameters, arguments)                                          \
    result __real_##name parameters;                                                               \
    result __wrap_##name parameters;                                                               \
    result __wrap_##name parameters                                                                \
    {                                                                                              \
        sim_critical_point();                                                                      \
        result answer = __real_##name arguments;                                                   \
        sim_critical_point();                                                                      \
        return answer;                                                                             \
    }

#define POINT_AROUND_VOID(name, parameters, arguments)                                             \
    void __real_##name parameters;                                                                 \
    void __wrap_##name parameters;                                                                 \
    void __wrap_##name parameters                                                                  \
    {                                                                                              \
        sim_critical_point();                                                                      \
        __real_##name arguments;                                                                   \
        sim_critical_point();                                                                      \
    }

POINT_AROUND(bool, lli_segment_find,
             (const struct lli_segment_layout *peer, int64_t cache_id,
              struct lli_remote_cache *ret_cache),
             (peer, cache_id, ret_cache))
POINT_AROUND(int, lli_segment_reader_enter,
             (struct lli_segment * segment, uint64_t owner, uint64_t generation),
             (segment, owner, generation))
POINT_AROUND(bool, lli_segment_still_live,
             (const struct lli_segment_layout *peer, const struct lli_remote_cache *cache),
             (peer, cache))
POINT_AROUND(bool, lli_segment_still_same,
             (const struct lli_segment_layout *peer, const struct lli_remote_cache *cache),
             (peer, cache))
POINT_AROUND(bool, lli_segment_is_read,
             (const struct lli_segment_layout *peer, uint64_t owner, uint64_t generation),
             (peer, owner, generation))
POINT_AROUND_VOID(lli_segment_retire, (struct lli_segment * segment, uint32_t entry),
                  (segment, entry))
POINT_AROUND_VOID(lli_segment_erase, (struct lli_segment * segment, uint32_t entry),
                  (segment, entry))
