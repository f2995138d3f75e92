// Feeds every file of the given directories to a fuzz target: the fuzzer's main without a fuzzer, so
// that the ordinary test run keeps what fuzzing has found.
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

// Exactly as large as the file, so that a sanitizer sees reads behind the end.
static uint8_t *
read_file(const char *path, size_t size)
{
    FILE *file = fopen(path, "rb");
    uint8_t *bytes = malloc(size > 0 ? size : 1);
    if (file == NULL || bytes == NULL || fread(bytes, 1, size, file) != size) {
        perror(path);
        exit(1);
    }
    fclose(file);
    return bytes;
}

// Returns 1 for a regular file, 0 for anything else.
static size_t
replay_file(const char *path)
{
    struct stat info;
    if (stat(path, &info) != 0) {
        perror(path);
        exit(1);
    }
    if (!S_ISREG(info.st_mode))
        return 0;
    uint8_t *bytes = read_file(path, (size_t)info.st_size);
    LLVMFuzzerTestOneInput(bytes, (size_t)info.st_size);
    free(bytes);
    return 1;
}

// In the order of the names: a failure comes at the same place every time.
static size_t
replay_directory(const char *directory)
{
    struct dirent **entries;
    size_t num_files = 0;
    int num_entries = scandir(directory, &entries, NULL, alphasort);
    if (num_entries < 0) {
        perror(directory);
        exit(1);
    }
    for (int i = 0; i < num_entries; i++) {
        char path[4096];
        int bytes = snprintf(path, sizeof(path), "%s/%s", directory, entries[i]->d_name);
        if (bytes >= 0 && (size_t)bytes < sizeof(path))
            num_files += replay_file(path);
        free(entries[i]);
    }
    free(entries);
    return num_files;
}

int
main(int argc, char **argv)
{
    size_t num_files = 0;
    for (int i = 1; i < argc; i++)
        num_files += replay_directory(argv[i]);
    printf("%zu inputs replayed\n", num_files);
    return num_files > 0 ? 0 : 1;
}
