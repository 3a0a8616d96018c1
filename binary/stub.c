/* Start of the single file `dist/vlatool`; `build.py` compiles it and appends two archives.

   It unpacks the first one, which starts the interpreter, to a folder of this build in the cache,
   and runs it there; that program unpacks the second one and gives the folder its final name. Later
   starts find the folder and run it. */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#define MACHINE 6 /* exit code */
#define BLOCK 512

static int wants_json;

/* Writes a text as JSON. */
static void quote(const char *text) {
    putchar('"');
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            printf("\\%c", *text);
        else if ((unsigned char)*text < 32)
            printf("\\u%04x", *text);
        else
            putchar(*text);
    }
    putchar('"');
}

static void fail(const char *hint, const char *format, ...) {
    char message[2 * PATH_MAX];
    va_list values;
    va_start(values, format);
    vsnprintf(message, sizeof message, format, values);
    va_end(values);
    if (wants_json) {
        printf("{\"error\": {\"kind\": \"environment\", \"code\": \"environment.hardware\", ");
        printf("\"message\": ");
        quote(message);
        printf(", \"hint\": ");
        quote(hint);
        printf(", \"details\": {}}}\n");
    }
    fflush(stdout);
    dprintf(2, "error: %s\nhint: %s\n", message, hint);
    exit(MACHINE);
}

static void join(char *path, const char *folder, const char *name) {
    if (snprintf(path, PATH_MAX, "%s/%s", folder, name) >= PATH_MAX)
        fail("set XDG_CACHE_HOME to a shorter path", "the path of the cache is too long");
}

/* Makes a folder and those above it; 0 if it is there and can be written. */
static int make_folder(const char *path, mode_t mode) {
    char part[PATH_MAX];
    snprintf(part, sizeof part, "%s", path);
    for (char *cut = strchr(part + 1, '/'); cut; cut = strchr(cut + 1, '/')) {
        *cut = 0;
        mkdir(part, 0777);
        *cut = '/';
    }
    if (mkdir(part, mode) && errno != EEXIST)
        return -1;
    return access(part, W_OK | X_OK);
}

/* True if nobody else could have put programs into a folder. */
static int is_own(const char *folder) {
    struct stat status;
    return lstat(folder, &status) == 0 && S_ISDIR(status.st_mode) && !(status.st_mode & 02) &&
           (status.st_uid == getuid() || status.st_uid == 0);
}

/* True if a folder of builds has this one. */
static int has_build(const char *root) {
    char folder[PATH_MAX];
    char program[PATH_MAX];
    join(folder, root, DIGEST);
    join(program, folder, "vlatool");
    return is_own(root) && is_own(folder) && access(program, X_OK) == 0;
}

/* Folder for unpacked builds: in the cache, or a private one in the temporary folder. */
static void find_root(char *root) {
    const char *cache = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    const char *temporary = getenv("TMPDIR");
    char below[PATH_MAX];
    struct stat status;
    if (cache && *cache == '/') {
        join(root, cache, "vlatool/binary");
        if (has_build(root) || (make_folder(root, 0755) == 0 && is_own(root)))
            return;
    }
    if (home && *home == '/') {
        join(root, home, ".cache/vlatool/binary");
        if (has_build(root) || (make_folder(root, 0755) == 0 && is_own(root)))
            return;
    }
    snprintf(below, sizeof below, "vlatool-%ld", (long)getuid());
    join(root, temporary && *temporary == '/' ? temporary : "/tmp", below);
    if (make_folder(root, 0700) == 0 && lstat(root, &status) == 0 && S_ISDIR(status.st_mode) &&
        status.st_uid == getuid() && (status.st_mode & 077) == 0)
        return;
    fail("set XDG_CACHE_HOME to a folder that is writable and has room",
         "no folder can be written to unpack vlatool to; the last one tried is %s", root);
}

static void write_all(int file, const char *data, size_t size, const char *path) {
    while (size) {
        ssize_t count = write(file, data, size);
        if (count < 0)
            fail("free space there, or set XDG_CACHE_HOME to another folder",
                 "%s cannot be written: %s", path, strerror(errno));
        data += count;
        size -= count;
    }
}

/* Unpacks the files and links of a tar at the current position. */
static void unpack(int archive, const char *folder) {
    static char buffer[1 << 20];
    char header[BLOCK];
    char path[PATH_MAX];
    while (read(archive, header, BLOCK) == BLOCK && header[0]) {
        size_t size = strtoull(header + 124, NULL, 8);
        join(path, folder, header);
        char *cut = strrchr(path, '/');
        *cut = 0;
        make_folder(path, 0777);
        *cut = '/';
        if (header[156] == '2') {
            symlink(header + 157, path);
            continue;
        }
        mode_t mode = strtoul(header + 100, NULL, 8) & 0777;
        int file = open(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
        if (file < 0)
            fail("set XDG_CACHE_HOME to another folder", "%s cannot be written: %s", path,
                 strerror(errno));
        size_t padded = (size + BLOCK - 1) / BLOCK * BLOCK;
        while (padded) {
            ssize_t count = read(archive, buffer, padded < sizeof buffer ? padded : sizeof buffer);
            if (count <= 0)
                fail("copy the file again", "the file is cut off");
            write_all(file, buffer, size < (size_t)count ? size : (size_t)count, path);
            size -= size < (size_t)count ? size : (size_t)count;
            padded -= count;
        }
        close(file);
    }
}

/* Starts a program of a folder, which finds libraries beside itself that the system may lack. */
static void start(const char *folder, char **words) {
    char program[PATH_MAX];
    char libraries[2 * PATH_MAX];
    const char *original = getenv("LD_LIBRARY_PATH");
    int is_set = original && *original; /* an empty path would be the current folder */
    join(program, folder, "vlatool");
    if (access(program, X_OK))
        return;
    if (is_set)
        setenv("VLATOOL_LD_LIBRARY_PATH", original, 1);
    snprintf(libraries, sizeof libraries, "%s/_internal%s%s", folder, is_set ? ":" : "",
             is_set ? original : "");
    setenv("LD_LIBRARY_PATH", libraries, 1);
    words[0] = program; /* by which it finds its files where /proc is missing */
    execv(program, words);
    fail("set XDG_CACHE_HOME to a folder from which programs may be started",
         "%s cannot be started: %s", program, strerror(errno));
}

int main(int count, char **words) {
    char self[PATH_MAX] = "";
    char root[PATH_MAX];
    char folder[PATH_MAX];
    char value[2 * PATH_MAX];
    struct statvfs disk;
    for (int i = 1; i < count; i++)
        wants_json |= !strcmp(words[i], "--json");
    if (readlink("/proc/self/exe", self, sizeof self - 1) < 0 && !realpath(words[0], self))
        fail("mount /proc", "the path of this program is unknown");
    setenv("VLATOOL_BINARY", self, 1);
    find_root(root);
    join(folder, root, DIGEST);
    if (has_build(root))
        start(folder, words);
    if (statvfs(root, &disk) == 0 && (unsigned long long)disk.f_bavail * disk.f_frsize < UNPACKED)
        fail("free space there, or set XDG_CACHE_HOME to another folder",
             "vlatool needs %lld MB to unpack, and %s has %lld MB", (long long)UNPACKED / 1000000,
             root, (long long)(disk.f_bavail * disk.f_frsize / 1000000));
    int file = open(self, O_RDONLY);
    off_t size = file < 0 ? 0 : lseek(file, 0, SEEK_END);
    if (size <= SIZE || lseek(file, size - SIZE, SEEK_SET) < 0)
        fail("copy the file again", "%s cannot be read whole", self);
    if (isatty(2))
        dprintf(2, "first start: unpacking to %s\n", folder);
    snprintf(value, sizeof value, "%lld %lld %s", (long long)(size - SIZE), (long long)FIRST,
             folder);
    setenv("VLATOOL_UNPACK", value, 1);
    snprintf(folder, sizeof folder, "%.3900s/%s.XXXXXX", root, DIGEST);
    if (!mkdtemp(folder) || chmod(folder, 0755))
        fail("set XDG_CACHE_HOME to another folder", "%s cannot be written: %s", root,
             strerror(errno));
    unpack(file, folder);
    start(folder, words);
    fail("copy the file again", "%s holds no program", self);
}
