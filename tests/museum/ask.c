/* Asks the driver library's look-up functions directly, with a poisoned pointer and status.
 *
 *     LD_LIBRARY_PATH=FOLDER ask REVISION:NAME:VERSION...
 *
 * Prints one JSON row per question: revision, name, version, code, pointer, status. The pointer is
 * "untouched", "null", the exported name of the function given, or "unknown". The status is null
 * for revision 1, and "unwritten" if revision 2 did not write it.
 */
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int (*first_revision)(const char *, void **, int, uint64_t);
typedef int (*second_revision)(const char *, void **, int, uint64_t, int *);

static char poison;

static const char *describe(void *library, const char *name, void *pointer, char *buffer, size_t size)
{
    static const char *const suffixes[] = {"", "_v2", "_v3", "_ptsz"};
    if (pointer == &poison)
        return "untouched";
    if (pointer == NULL)
        return "null";
    for (size_t i = 0; i < sizeof suffixes / sizeof *suffixes; i++) {
        snprintf(buffer, size, "%s%s", name, suffixes[i]);
        if (dlsym(library, buffer) == pointer)
            return buffer;
    }
    return "unknown";
}

int main(int argc, char **argv)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    void *first = dlsym(library, "cuGetProcAddress");
    void *second = dlsym(library, "cuGetProcAddress_v2");
    printf("[");
    for (int i = 1; i < argc; i++) {
        char name[128], buffer[160], status_text[16] = "null";
        int revision, version, code, status = -77;
        void *pointer = &poison;
        if (sscanf(argv[i], "%d:%127[^:]:%d", &revision, name, &version) != 3) {
            fprintf(stderr, "bad question %s\n", argv[i]);
            return 2;
        }
        if (revision == 1)
            code = ((first_revision)first)(name, &pointer, version, 0);
        else {
            code = ((second_revision)second)(name, &pointer, version, 0, &status);
            if (status == -77)
                strcpy(status_text, "\"unwritten\"");
            else
                snprintf(status_text, sizeof status_text, "%d", status);
        }
        printf("%s[%d, \"%s\", %d, %d, \"%s\", %s]", i > 1 ? ",\n" : "", revision, name, version, code,
               describe(library, name, pointer, buffer, sizeof buffer), status_text);
    }
    printf("]\n");
    return 0;
}
