// SPDX-License-Identifier: Apache-2.0
//
// Lets the n-th call of one kind fail, transfer less than it was asked for, or do nothing and say that it did, in a
// program that is started with this library preloaded (ld.so(8), LD_PRELOAD). strace can fail a call, but it can neither
// shorten one nor lie. Counts the calls of files only: sockets, pipes and terminals are left alone.
//
//   FAILING_CALL    pread, preadv, pwrite, pwritev2, fdatasync, fallocate, ftruncate, or of Linux AIO aio-read, aio-write,
//                   aio-sync
//   FAILING_NUMBER  which of them fails, from 1; 0: none does
//   FAILING_ERRNO   the error; 0: the call does a part of what it should, at least one byte; -1: a write is lost
//   FAILING_COUNTS  a file of at least 128 bytes that holds, as 64-bit words, the count of each call in the order above,
//                   then what happened: 0 nothing, 1 the fault, 3 the fault of a write with RWF_DSYNC. It is mapped at the
//                   start, before a program gives up its rights.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libaio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PREAD, PREADV, PWRITE, PWRITEV2, FDATASYNC, FALLOCATE, FTRUNCATE, AIO_READ, AIO_WRITE, AIO_SYNC, CALLS };
static const char *const names[CALLS] = {"pread", "preadv", "pwrite", "pwritev2", "fdatasync", "fallocate", "ftruncate",
                                         "aio-read", "aio-write", "aio-sync"};
enum { HAPPENED = CALLS, WORDS = 16 };
static _Atomic int64_t own[WORDS], *words = own;
static int call_wanted = -1, error_wanted;
static int64_t number_wanted;

static long number_of(const char *name) {
  const char *text = getenv(name);
  return text ? atol(text) : 0;
}

__attribute__((constructor)) static void begin(void) {
  const char *wanted = getenv("FAILING_CALL"), *path = getenv("FAILING_COUNTS");
  for (int call = 0; call < CALLS; call++)
    if (wanted && !strcmp(wanted, names[call])) call_wanted = call;
  number_wanted = number_of("FAILING_NUMBER");
  error_wanted = (int)number_of("FAILING_ERRNO");
  int file = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *mapped = mmap(NULL, sizeof own, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (mapped != MAP_FAILED) words = mapped;
  close(file);
}

enum fate { LEAVE, FAIL, SHORTEN, LOSE };

static enum fate fate(int call, int fd, int is_durable) {
  struct stat status;
  if (fstat(fd, &status) || !(S_ISREG(status.st_mode) || S_ISBLK(status.st_mode))) return LEAVE;
  int64_t number = atomic_fetch_add(&words[call], 1) + 1;
  if (call != call_wanted || number != number_wanted) return LEAVE;
  atomic_store(&words[HAPPENED], is_durable ? 3 : 1);
  if (error_wanted > 0) errno = error_wanted;
  return error_wanted > 0 ? FAIL : error_wanted ? LOSE : SHORTEN;
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static size_t part(size_t count) { return count > 1 ? (count + 1) / 2 : count; }

static ssize_t sum(const struct iovec *vectors, int count) {
  ssize_t total = 0;
  for (int index = 0; index < count; index++) total += vectors[index].iov_len;
  return total;
}

ssize_t pread(int fd, void *bytes, size_t count, off_t offset) {
  enum fate what = fate(PREAD, fd, 0);
  return what == FAIL ? -1 : NEXT(pread)(fd, bytes, what == SHORTEN ? part(count) : count, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) {
  enum fate what = fate(PWRITE, fd, 0);
  if (what == LOSE) return count;
  return what == FAIL ? -1 : NEXT(pwrite)(fd, bytes, what == SHORTEN ? part(count) : count, offset);
}

/// The first vector, or half of the only one.
static struct iovec shorter(const struct iovec *vectors, int count) {
  struct iovec first = vectors[0];
  if (count == 1) first.iov_len = part(first.iov_len);
  return first;
}

ssize_t preadv(int fd, const struct iovec *vectors, int count, off_t offset) {
  enum fate what = fate(PREADV, fd, 0);
  if (what == FAIL) return -1;
  struct iovec first = shorter(vectors, count);
  return what == SHORTEN ? NEXT(preadv)(fd, &first, 1, offset) : NEXT(preadv)(fd, vectors, count, offset);
}

ssize_t pwritev2(int fd, const struct iovec *vectors, int count, off_t offset, int flags) {
  enum fate what = fate(PWRITEV2, fd, flags & RWF_DSYNC);
  if (what == FAIL) return -1;
  if (what == LOSE) return sum(vectors, count);
  struct iovec first = shorter(vectors, count);
  return what == SHORTEN ? NEXT(pwritev2)(fd, &first, 1, offset, flags) : NEXT(pwritev2)(fd, vectors, count, offset, flags);
}

int fdatasync(int fd) { return fate(FDATASYNC, fd, 0) == FAIL ? -1 : NEXT(fdatasync)(fd); }

int fallocate(int fd, int mode, off_t offset, off_t length) {
  enum fate what = fate(FALLOCATE, fd, 0);
  return what == FAIL ? -1 : what == LOSE ? 0 : NEXT(fallocate)(fd, mode, offset, length);
}

int ftruncate(int fd, off_t length) {
  enum fate what = fate(FTRUNCATE, fd, 0);
  return what == FAIL ? -1 : what == LOSE ? 0 : NEXT(ftruncate)(fd, length);
}

// MARK: Linux AIO

static int kind(const struct iocb *block) {
  switch (block->aio_lio_opcode) {
  case IO_CMD_PREAD: case IO_CMD_PREADV: return AIO_READ;
  case IO_CMD_PWRITE: case IO_CMD_PWRITEV: return AIO_WRITE;
  case IO_CMD_FDSYNC: case IO_CMD_FSYNC: return AIO_SYNC;
  default: return CALLS;
  }
}

/// Half of what a block asks for, in whole pages, as a direct transfer has it. A page is transferred as a whole.
static void shorten(struct iocb *block) {
  if (block->aio_lio_opcode == IO_CMD_PREADV || block->aio_lio_opcode == IO_CMD_PWRITEV) {
    if (block->u.v.nr > 1 && block->u.v.vec[0].iov_len % 4096 == 0) block->u.v.nr = 1;
  } else if (block->u.c.nbytes > 4096) {
    block->u.c.nbytes = (block->u.c.nbytes / 2 + 4095) & ~(size_t)4095;
  }
}

/// What is taken over before the one that fails is taken over; the kernel refuses the first of a list with an error.
int io_submit(io_context_t context, long count, struct iocb **blocks) {
  static _Thread_local struct iocb *refused;
  static _Thread_local int counted;
  if (refused && count > 0 && blocks[0] == refused) {
    refused = NULL;
    counted = 0;
    return -error_wanted;
  }
  // those of a list that was not taken over as a whole come again
  for (; counted < count; counted++) {
    struct iocb *block = blocks[counted];
    int call = kind(block);
    if (call == CALLS) continue;
    enum fate what = fate(call, block->aio_fildes, call == AIO_WRITE && (block->aio_rw_flags & RWF_DSYNC));
    if (what == SHORTEN) shorten(block);
    if (what == FAIL) {
      refused = block;
      counted++;
      break;
    }
  }
  long before = 0;
  while (before < count && blocks[before] != refused) before++;
  if (refused && before == 0) {
    refused = NULL;
    counted -= 1;
    return -error_wanted;
  }
  int taken = NEXT(io_submit)(context, before, blocks);
  counted -= taken > 0 ? taken : 0;
  return taken;
}
