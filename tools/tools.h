// What the files of the command llm-datadist share.
#ifndef LLM_TOOLS_H
#define LLM_TOOLS_H

// Exit codes.
enum {
    TOOL_OK = 0,
    TOOL_FAILED = 1,
    TOOL_USAGE = 2 // the command line makes no sense
};

// One function per subcommand.  argv[0] is the subcommand's name; the result is the exit code.
int tool_bench(int argc, char **argv);
int tool_demo(int argc, char **argv);
int tool_info(int argc, char **argv);

// The one of `names` (closed with NULL) that was probably meant by `word`; NULL if none is close.
const char *tool_closest(const char *word, const char *const *names);

#endif
