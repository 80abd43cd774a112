// SPDX-License-Identifier: Apache-2.0
//
// libzstd, loaded when an image needs it: linked as usual it would take 0.1 ms of the start of every
// program here and 0.2 MiB of every export (tools/decisions/0023). Source: dlopen(3), zstd.h.
#include "czstd.h"
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <zstd.h>
#include <zstd_errors.h>

#define FUNCTIONS(X) \
  X(ZSTD_compressCCtx) \
  X(ZSTD_createCCtx) \
  X(ZSTD_createDCtx) \
  X(ZSTD_decompressDCtx) \
  X(ZSTD_findFrameCompressedSize) \
  X(ZSTD_freeCCtx) \
  X(ZSTD_freeDCtx) \
  X(ZSTD_getErrorCode) \
  X(ZSTD_isError)

#define DEFINE(name) static __typeof__(&name) real_##name;
FUNCTIONS(DEFINE)

static pthread_once_t once = PTHREAD_ONCE_INIT;
static const char *failure = NULL;

static void load(void) {
  void *library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) {
    failure = "libzstd.so.1 cannot be loaded";
    return;
  }
#define RESOLVE(name)                                             \
  real_##name = (__typeof__(real_##name))dlsym(library, #name);   \
  if (real_##name == NULL) failure = "libzstd.so.1 has no " #name;
  FUNCTIONS(RESOLVE)
}

const char *czstd_load(void) {
  pthread_once(&once, load);
  return failure;
}

void *czstd_create_decompressor(void) { return real_ZSTD_createDCtx(); }

void czstd_free_decompressor(void *decompressor) { real_ZSTD_freeDCtx(decompressor); }

ssize_t czstd_frame_count(const void *source, size_t count) {
  size_t result = real_ZSTD_findFrameCompressedSize(source, count);
  return real_ZSTD_isError(result) ? -EINVAL : (ssize_t)result;
}

ssize_t czstd_decompress_frame(
    void *decompressor, void *target, size_t room, const void *source, size_t count) {
  size_t result = real_ZSTD_decompressDCtx(decompressor, target, room, source, count);
  return real_ZSTD_isError(result) ? -EINVAL : (ssize_t)result;
}

// The level that zstd takes by itself, as QEMU does: 0 stands for it.
ssize_t czstd_compress(void *target, size_t room, const void *source, size_t count) {
  ZSTD_CCtx *compressor = real_ZSTD_createCCtx();
  if (compressor == NULL) return -ENOMEM;
  size_t result = real_ZSTD_compressCCtx(compressor, target, room, source, count, 0);
  real_ZSTD_freeCCtx(compressor);
  if (!real_ZSTD_isError(result)) return (ssize_t)result;
  return real_ZSTD_getErrorCode(result) == ZSTD_error_dstSize_tooSmall ? -ENOSPC : -ENOMEM;
}
