/* LD_PRELOAD: a disk below DISK_PREFIX without some operations.
   DISK_FLOCK=ENOLCK|ENOSYS|EOPNOTSUPP: there are no locks; NOOP: everyone gets them.
   DISK_RENAME=ENOSYS|EOPNOTSUPP|EPERM: files cannot be renamed.
   DISK_QUOTA=N: only N bytes can be written by this process. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <unistd.h>

static int number(const char *name) {
  if (!name) return 0;
  if (!strcmp(name, "ENOLCK")) return ENOLCK;
  if (!strcmp(name, "ENOSYS")) return ENOSYS;
  if (!strcmp(name, "EOPNOTSUPP")) return EOPNOTSUPP;
  return EPERM;
}

static int below(const char *path) {
  const char *prefix = getenv("DISK_PREFIX");
  return prefix && !strncmp(path, prefix, strlen(prefix));
}

static int descriptor_below(int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

static int path_below(const char *path) {
  char whole[PATH_MAX * 2], folder[PATH_MAX];
  if (path[0] == '/') return below(path);
  if (!getcwd(folder, sizeof folder)) return 0;
  snprintf(whole, sizeof whole, "%s/%s", folder, path);
  return below(whole);
}

int flock(int descriptor, int operation) {
  int (*real)(int, int) = dlsym(RTLD_NEXT, "flock");
  const char *mode = getenv("DISK_FLOCK");
  if (!mode || !descriptor_below(descriptor)) return real(descriptor, operation);
  if (!strcmp(mode, "NOOP")) return 0;
  errno = number(mode);
  return -1;
}

int rename(const char *source, const char *target) {
  int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
  int problem = number(getenv("DISK_RENAME"));
  if (!problem || !path_below(target)) return real(source, target);
  errno = problem;
  return -1;
}

static int is_over(int descriptor, size_t size) {
  static long used;
  const char *quota = getenv("DISK_QUOTA");
  if (!quota || !descriptor_below(descriptor)) return 0;
  used += size;
  errno = EDQUOT;
  return used > atol(quota);
}

ssize_t write(int descriptor, const void *data, size_t size) {
  ssize_t (*real)(int, const void *, size_t) = dlsym(RTLD_NEXT, "write");
  return is_over(descriptor, size) ? -1 : real(descriptor, data, size);
}
