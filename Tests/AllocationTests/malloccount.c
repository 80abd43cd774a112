// SPDX-License-Identifier: Apache-2.0
//
// Counts the allocations of a program that it is preloaded into, in a file that the test maps too.
// Built by the test with clang. Source: ld.so(8) LD_PRELOAD, malloc(3), backtrace(3).
#include <execinfo.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { FRAMES = 24, TRACES = 64 };

struct report {
  _Atomic uint64_t count;
  // Set by the test: allocations from now on that leave their call stack below.
  _Atomic uint64_t traces_wanted;
  _Atomic uint64_t trace_count;
  uint64_t frames[TRACES][FRAMES];
};

static struct report unseen;
static struct report *report = &unseen;
static __thread int is_tracing __attribute__((tls_model("initial-exec")));

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

__attribute__((constructor)) static void start(void) {
  void *frames[2];
  backtrace(frames, 2);  // its first call allocates
  const char *path = getenv("MALLOC_REPORT");
  int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
  if (fd < 0) return;
  void *map = mmap(NULL, sizeof(struct report), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  close(fd);
  if (map != MAP_FAILED) report = map;
}

static void note(void) {
  atomic_fetch_add(&report->count, 1);
  if (is_tracing) return;
  if (atomic_load(&report->trace_count) >= atomic_load(&report->traces_wanted)) return;
  uint64_t number = atomic_fetch_add(&report->trace_count, 1);
  if (number >= TRACES) return;
  is_tracing = 1;
  void *frames[FRAMES] = {0};
  backtrace(frames, FRAMES);
  for (int index = 0; index < FRAMES; index++) {
    report->frames[number][index] = (uint64_t)frames[index];
  }
  is_tracing = 0;
}

void *malloc(size_t size) {
  note();
  return __libc_malloc(size);
}

void *calloc(size_t count, size_t size) {
  note();
  return __libc_calloc(count, size);
}

void *realloc(void *old, size_t size) {
  note();
  return __libc_realloc(old, size);
}

void *memalign(size_t alignment, size_t size) {
  note();
  return __libc_memalign(alignment, size);
}

void *aligned_alloc(size_t alignment, size_t size) {
  note();
  return __libc_memalign(alignment, size);
}

int posix_memalign(void **result, size_t alignment, size_t size) {
  note();
  void *address = __libc_memalign(alignment, size);
  if (!address) return 12;  // ENOMEM
  *result = address;
  return 0;
}
