// Writes that the thread sanitizer doesn't watch: bytes of transfers.  Transfers into the same memory
// at once are their callers' own affair, and so is one that names a block twice.  It would look at each
// of those bytes, for minutes.
#ifndef LLI_UNWATCHED_H
#define LLI_UNWATCHED_H

#ifdef __SANITIZE_THREAD__
void AnnotateIgnoreWritesBegin(const char *file, int line);
void AnnotateIgnoreWritesEnd(const char *file, int line);
#define LLI_UNWATCHED_BEGIN() AnnotateIgnoreWritesBegin(__FILE__, __LINE__)
#define LLI_UNWATCHED_END() AnnotateIgnoreWritesEnd(__FILE__, __LINE__)
#else
#define LLI_UNWATCHED_BEGIN() ((void)0)
#define LLI_UNWATCHED_END() ((void)0)
#endif

#endif
