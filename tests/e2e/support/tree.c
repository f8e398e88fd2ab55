/* Prints a line for each entry of a file system, with everything that a file has of its own.
 *
 *   tree FOLDER          what is below the folder
 *   tree --root FOLDER   mounts the root once more on the folder first: what other mounts hide shows
 *
 * Fields are separated by tabs: name, type and mode, owner, group, links, size, device, time of
 * change, content, extended attributes. A folder's size and its count of links are matters of the
 * file system it is on, and left out. Content is a hash over its blocks that are not zero. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

static void die(const char *what) {
    fprintf(stderr, "tree: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void escaped(const char *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) {
        unsigned char byte = bytes[i];
        if (byte > ' ' && byte < 127 && byte != '\\') putchar(byte);
        else printf("\\x%02x", byte);
    }
}

static uint64_t hashed(uint64_t hash, const void *bytes, size_t length) {
    for (size_t i = 0; i < length; i++) hash = (hash ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3;
    return hash;
}

static void content(int folder, const char *name) {
    static char block[4096];
    uint64_t hash = 0xcbf29ce484222325;
    int file = openat(folder, name, O_RDONLY | O_NOFOLLOW);
    if (file < 0) die(name);
    off_t at = 0;
    for (;;) {
        off_t data = lseek(file, at, SEEK_DATA);
        if (data < 0) break;
        at = data / sizeof block * sizeof block;
        ssize_t length = pread(file, block, sizeof block, at);
        if (length < 0) die(name);
        if (length == 0) break;
        ssize_t i = 0;
        while (i < length && block[i] == 0) i++;
        if (i < length) {
            hash = hashed(hash, &at, sizeof at);
            ssize_t end = length;
            while (block[end - 1] == 0) end--;
            hash = hashed(hash, block, end);
        }
        at += length;
    }
    close(file);
    printf("%016llx", (unsigned long long)hash);
}

static int by_name(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void attributes(int folder, const char *name) {
    static char names[65536], value[65536], path[64 + 256];
    snprintf(path, sizeof path, "/proc/self/fd/%d/%s", folder, name);
    ssize_t length = llistxattr(path, names, sizeof names);
    if (length < 0) {
        if (errno == ENOTSUP) return;
        die(path);
    }
    char *sorted[4096];
    size_t count = 0;
    for (char *at = names; at < names + length; at += strlen(at) + 1) sorted[count++] = at;
    qsort(sorted, count, sizeof *sorted, by_name);
    for (size_t i = 0; i < count; i++) {
        ssize_t size = lgetxattr(path, sorted[i], value, sizeof value);
        if (size < 0) die(sorted[i]);
        printf("%s%s=", i ? "," : "", sorted[i]);
        escaped(value, size);
    }
}

static void entry(int folder, const char *name, const char *path, dev_t device);

static void walk(int folder, const char *path, dev_t device) {
    DIR *stream = fdopendir(folder);
    if (!stream) die(path);
    size_t count = 0, room = 64;
    char **names = malloc(room * sizeof *names);
    struct dirent *next;
    while ((next = readdir(stream))) {
        if (!strcmp(next->d_name, ".") || !strcmp(next->d_name, "..")) continue;
        if (count == room) names = realloc(names, (room *= 2) * sizeof *names);
        names[count++] = strdup(next->d_name);
    }
    qsort(names, count, sizeof *names, by_name);
    for (size_t i = 0; i < count; i++) {
        char *below;
        if (asprintf(&below, "%s%s%s", path, *path ? "/" : "", names[i]) < 0) die("memory");
        entry(folder, names[i], below, device);
        free(below);
        free(names[i]);
    }
    free(names);
    closedir(stream);
}

static void entry(int folder, const char *name, const char *path, dev_t device) {
    struct stat status;
    if (fstatat(folder, name, &status, AT_SYMLINK_NOFOLLOW)) die(path);
    if (status.st_dev != device) return;
    escaped(path, strlen(path));
    int is_folder = S_ISDIR(status.st_mode), is_device = S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode);
    printf("\t%o\t%u\t%u\t%ld\t%lld", status.st_mode, status.st_uid, status.st_gid,
           is_folder ? 0L : (long)status.st_nlink, is_folder ? 0LL : (long long)status.st_size);
    printf("\t%u:%u", is_device ? major(status.st_rdev) : 0, is_device ? minor(status.st_rdev) : 0);
    printf("\t%lld.%09ld\t", (long long)status.st_mtim.tv_sec, status.st_mtim.tv_nsec);
    if (S_ISREG(status.st_mode)) content(folder, name);
    if (S_ISLNK(status.st_mode)) {
        static char target[8192];
        ssize_t length = readlinkat(folder, name, target, sizeof target);
        if (length < 0) die(path);
        escaped(target, length);
    }
    putchar('\t');
    attributes(folder, name);
    putchar('\n');
    if (is_folder) {
        int below = openat(folder, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW);
        if (below < 0) die(path);
        walk(below, path, device);
    }
}

int main(int count, char **arguments) {
    int root = count == 3 && !strcmp(arguments[1], "--root");
    if (count != 2 + root) return fprintf(stderr, "usage: tree [--root] FOLDER\n"), 2;
    const char *folder = arguments[1 + root];
    if (root && mount("/", folder, NULL, MS_BIND, NULL)) die("mount");
    int open_folder = open(folder, O_RDONLY | O_DIRECTORY);
    struct stat status;
    if (open_folder < 0 || fstat(open_folder, &status)) die(folder);
    static char buffer[1 << 20];
    setvbuf(stdout, buffer, _IOFBF, sizeof buffer);
    walk(open_folder, "", status.st_dev);
    return fflush(stdout) ? 1 : 0;
}
