// SPDX-License-Identifier: Apache-2.0
//
// Lets the n-th call of one kind fail, or transfer less than it was asked for, in a program that is started with this
// library preloaded (ld.so(8), LD_PRELOAD). strace can fail a call, but it cannot shorten one. Counts the calls of files
// only: sockets, pipes and terminals are left alone.
//
//   FAILING_CALL    pread, preadv, pwrite, pwritev2, fdatasync, fallocate, ftruncate
//   FAILING_NUMBER  which of them fails, from 1; 0: none does
//   FAILING_ERRNO   the error; 0: the call does a part of what it should, at least one byte
//   FAILING_COUNTS  a file that gets "CALL COUNT" lines at the end
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>

enum { PREAD, PREADV, PWRITE, PWRITEV2, FDATASYNC, FALLOCATE, FTRUNCATE, CALLS };
static const char *const names[CALLS] = {"pread", "preadv", "pwrite", "pwritev2", "fdatasync", "fallocate", "ftruncate"};
static atomic_long counts[CALLS];

static long number_of(const char *name) {
  const char *text = getenv(name);
  return text ? atol(text) : 0;
}

/// 0: let it be; 1: fail with errno; 2: shorten it.
static int fate(int call, int fd) {
  struct stat status;
  if (fstat(fd, &status) || !(S_ISREG(status.st_mode) || S_ISBLK(status.st_mode))) return 0;
  long number = atomic_fetch_add(&counts[call], 1) + 1;
  const char *wanted = getenv("FAILING_CALL");
  if (!wanted || strcmp(wanted, names[call]) || number != number_of("FAILING_NUMBER")) return 0;
  errno = (int)number_of("FAILING_ERRNO");
  return errno ? 1 : 2;
}

__attribute__((destructor)) static void tell(void) {
  const char *path = getenv("FAILING_COUNTS");
  FILE *file = path ? fopen(path, "w") : NULL;
  if (!file) return;
  for (int call = 0; call < CALLS; call++) fprintf(file, "%s %ld\n", names[call], atomic_load(&counts[call]));
  fclose(file);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static size_t part(size_t count) { return count > 1 ? (count + 1) / 2 : count; }

ssize_t pread(int fd, void *bytes, size_t count, off_t offset) {
  int what = fate(PREAD, fd);
  return what == 1 ? -1 : NEXT(pread)(fd, bytes, what ? part(count) : count, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
  int what = fate(PWRITE, fd);
  return what == 1 ? -1 : NEXT(pwrite)(fd, bytes, what ? part(count) : count, offset);
}

/// The first vector, or half of the only one.
static struct iovec shorter(const struct iovec *vectors, int count) {
  struct iovec first = vectors[0];
  if (count == 1) first.iov_len = part(first.iov_len);
  return first;
}

ssize_t preadv(int fd, const struct iovec *vectors, int count, off_t offset) {
  int what = fate(PREADV, fd);
  if (what == 1) return -1;
  struct iovec first = shorter(vectors, count);
  return what ? NEXT(preadv)(fd, &first, 1, offset) : NEXT(preadv)(fd, vectors, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
  int what = fate(PWRITEV2, fd);
  if (what == 1) return -1;
  struct iovec first = shorter(vectors, count);
  return what ? NEXT(pwritev2)(fd, &first, 1, offset, flags) : NEXT(pwritev2)(fd, vectors, count, offset, flags);
}

int fdatasync(int fd) { return fate(FDATASYNC, fd) == 1 ? -1 : NEXT(fdatasync)(fd); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
  return fate(FALLOCATE, fd) == 1 ? -1 : NEXT(fallocate)(fd, mode, offset, length);
}

int ftruncate(int fd, off_t length) { return fate(FTRUNCATE, fd) == 1 ? -1 : NEXT(ftruncate)(fd, length); }
