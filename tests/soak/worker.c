// A worker: threads that make random calls on the seats of their process.
#include <dirent.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "multi/process.h"
#include "soak/job.h"

struct worker {
    unsigned index;
    struct worker_board *board;
    struct seat seats[SEATS_PER_WORKER];
    struct thread threads[THREADS];
};

enum { FORKS_OF_2000 = 6 };

// Whoever looks at the list of descriptors has one more, which others must not count.
static pthread_mutex_t descriptors_lock = PTHREAD_MUTEX_INITIALIZER;

// ---- faults that a process does to itself ----

// Cuts one of the TCP connections of this process, whichever.
static void
cut_connection(struct thread *th)
{
    unsigned wanted = atomic_load(&th->worker->board->cuts_wanted);
    if (wanted == 0 ||
        !atomic_compare_exchange_strong(&th->worker->board->cuts_wanted, &wanted, wanted - 1))
        return;
    pthread_mutex_lock(&descriptors_lock);
    DIR *directory = opendir("/proc/self/fd");
    int chosen = -1;
    uint64_t num_seen = 0;
    for (struct dirent *entry; directory != NULL && (entry = readdir(directory)) != NULL;) {
        struct sockaddr_in address;
        socklen_t length = sizeof(address);
        int fd = atoi(entry->d_name);
        if (entry->d_name[0] == '.' || syscall(SYS_getpeername, fd, &address, &length) != 0 ||
            address.sin_family != AF_INET)
            continue;
        if (roll(&th->dice, ++num_seen) == 0)
            chosen = fd;
    }
    if (directory != NULL)
        closedir(directory);
    pthread_mutex_unlock(&descriptors_lock);
    // What has become of that descriptor meanwhile is cut all the same, or is no socket.
    if (chosen >= 0 && syscall(SYS_shutdown, chosen, SHUT_RDWR) == 0)
        count(COUNT_cuts, 1);
}

// ---- life ----

static uint64_t
count_entries(const char *path)
{
    DIR *directory = opendir(path);
    uint64_t number = 0;
    while (directory != NULL && readdir(directory) != NULL)
        number++;
    if (directory != NULL)
        closedir(directory);
    return number - 2;
}

static uint64_t
resident_kb(void)
{
    unsigned long long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL && fscanf(file, "%*u %llu", &pages) != 1)
        pages = 0;
    if (file != NULL)
        fclose(file);
    return pages * (uint64_t)sysconf(_SC_PAGESIZE) / 1024;
}

// No instance is open: whatever is still there stays for ever.
static void
take_rest(struct worker *w)
{
    pthread_mutex_lock(&descriptors_lock);
    struct rest rest = {
        .rss_kb = resident_kb(),
        .descriptors = count_entries("/proc/self/fd") - 1, // of the directory itself
        .threads = count_entries("/proc/self/task"),
    };
    pthread_mutex_unlock(&descriptors_lock);
    // At the end threads have gone already.
    if (atomic_load(&board->over))
        return;
    // The first time everything in this process has been used once.
    bool is_first = atomic_load(&w->board->rests) == 0;
    if (is_first)
        w->board->first = rest;
    w->board->last = rest;
    atomic_fetch_add(&w->board->rests, 1);
    if (is_first)
        return;
    WRONG_UNLESS(rest.descriptors == w->board->first.descriptors,
                 "%llu descriptors are open at rest, %llu were",
                 (unsigned long long)rest.descriptors,
                 (unsigned long long)w->board->first.descriptors);
    WRONG_UNLESS(rest.threads == w->board->first.threads, "%llu threads run at rest, %llu did",
                 (unsigned long long)rest.threads, (unsigned long long)w->board->first.threads);
}

static void
live_again(struct thread *th, struct seat *seat)
{
    struct job jobs[STARTED_MAX];
    uint64_t transfers[STARTED_MAX];
    AT(th);
    pthread_rwlock_wrlock(&seat->lock);
    bool under_way = roll(&th->dice, 2) == 0 && start_pulls(th, seat, jobs, transfers) > 0;
    AT(th);
    seat_close(seat, &th->dice);
    for (unsigned i = 0; under_way && i < STARTED_MAX; i++) {
        struct target *target = jobs[i].target;
        if (transfers[i] != 0 && target->cache.registered)
            target->checksum = memory_checksum(&target->cache.memory);
    }
    AT(th);
    (void)seat_open(seat, &th->dice);
    pthread_rwlock_unlock(&seat->lock);
}

static void
rest_all(struct thread *th)
{
    struct worker *w = th->worker;
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        AT(th);
        pthread_rwlock_wrlock(&w->seats[i].lock);
        seat_close(&w->seats[i], &th->dice);
    }
    take_rest(w);
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        (void)seat_open(&w->seats[i], &th->dice);
        pthread_rwlock_unlock(&w->seats[i].lock);
    }
}

// ---- the worker ----

static void
link_to_some(struct thread *th, struct seat *seat)
{
    link_to(th, seat, choose_peer(seat, &th->dice));
}

static void
step_with(struct thread *th, struct seat *seat)
{
    static const struct {
        unsigned weight;
        void (*act)(struct thread *th, struct seat *seat);
        void (*change)(struct seat *seat, uint64_t *dice);
    } acts[] = {
        {24, pull, NULL},
        {6, pull_on, NULL},
        {8, pull_side_by_side, NULL},
        {9, pull_by_key, NULL},
        {9, pull_under_lease, NULL},
        {18, push, NULL},
        {3, copy_here, NULL},
        {4, NULL, seat_change_source},
        {1, NULL, seat_change_goal},
        {3, NULL, shelf_change},
        {4, NULL, loan_change},
        {3, poll_notes, NULL},
        {2, poll_events, NULL},
        {2, look_inside, NULL},
        {1, link_to_some, NULL},
        {1, unlink_from, NULL},
        {2, pull_the_rug, NULL},
    };
    size_t i = 0;
    for (uint64_t number = roll(&th->dice, 100); number >= acts[i].weight; i++)
        number -= acts[i].weight;
    if (acts[i].act != NULL) {
        acts[i].act(th, seat);
        return;
    }
    AT(th);
    acts[i].change(seat, &th->dice);
}

static void
step(struct thread *th)
{
    struct seat *seat = &th->worker->seats[roll(&th->dice, SEATS_PER_WORKER)];
    uint64_t number = roll(&th->dice, 2000);
    cut_connection(th);
    if (number < 4) {
        live_again(th, seat);
    } else if (number < 7) {
        rest_all(th);
    } else if (number < 10) {
        AT(th);
        pthread_rwlock_wrlock(&seat->lock);
        seat_change_role(seat, &th->dice);
        pthread_rwlock_unlock(&seat->lock);
    } else {
        AT(th);
        pthread_rwlock_rdlock(&seat->lock);
        seat_check_goals(seat);
        if (number < 10 + FORKS_OF_2000)
            fork_off(th, seat);
        else
            step_with(th, seat);
        pthread_rwlock_unlock(&seat->lock);
    }
    count(COUNT_steps, 1);
}

static void *
thread_run(void *arg)
{
    struct thread *th = arg;
    trouble_start(th);
    while (!atomic_load(&board->over) && !atomic_load(&board->is_wrong)) {
        atomic_store(&th->board->began_ms, soak_now_ms());
        step(th);
        trouble_look(th);
    }
    trouble_stop(th);
    atomic_store(&th->board->began_ms, 0);
    return NULL;
}

static void
start_thread(struct worker *w, unsigned number, uint64_t life)
{
    struct thread *th = &w->threads[number];
    th->worker = w;
    th->board = &w->board->threads[number];
    th->number = number;
    th->num_pushes = life << 20;
    th->dice = mix(board->seed ^ mix(w->index * 64 + number + 1) ^ mix(life));
    if (pthread_create(&th->handle, NULL, thread_run, th) != 0)
        abort();
}

static void
close_thread(struct thread *th)
{
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        for (unsigned j = 0; j < TARGETS; j++)
            memory_unmap(&th->targets[i][j].cache.memory);
    }
}

int
worker_run(unsigned index)
{
    static struct worker worker;
    struct worker *w = &worker;
    w->index = index;
    w->board = &board->workers[index];
    memory_next_place = &w->board->next_place;
    uint64_t life = atomic_fetch_add(&w->board->life, 1);
    uint64_t dice = mix(board->seed ^ mix(index + 1000) ^ mix(life + 1));
    atomic_store(&w->board->rests, 0);
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        seat_init(&w->seats[i], index * SEATS_PER_WORKER + i);
        if (!seat_open(&w->seats[i], &dice))
            return 1;
    }
    trouble_choose(&dice);
    for (unsigned i = 0; i < THREADS; i++)
        start_thread(w, i, life);
    for (unsigned i = 0; i < THREADS; i++)
        pthread_join(w->threads[i].handle, NULL);
    for (unsigned i = 0; i < SEATS_PER_WORKER; i++) {
        seat_close(&w->seats[i], &dice);
        seat_destroy(&w->seats[i]);
    }
    for (unsigned i = 0; i < THREADS; i++)
        close_thread(&w->threads[i]);
    return atomic_load(&board->is_wrong) ? 1 : 0;
}
