// Forks.  A child has copies of the parent's descriptors and none of its threads.  Left alone, it would
// hold the parent's port and links when the parent is dead, and what it took out of an epoll would be
// missing in the parent's, which is the same one.  So a child closes what is watched here, at once, and
// touches nothing else of the parent's.
#ifndef LLI_FORK_H
#define LLI_FORK_H

// A child will close the descriptor.  [any thread, as the others]
void lli_fork_watch(int fd);
// Before the descriptor is closed.
void lli_fork_unwatch(int fd);

// How many forks there have been on the way from the first process to this one: a number that is
// another in a child.
unsigned lli_fork_count(void);

// In the child, as the first thing that it does.
void lli_fork_in_child(void);

#endif
