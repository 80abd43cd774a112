// SPDX-License-Identifier: Apache-2.0
//
// libaio for Swift: what does not import by itself. Functions return -errno; no policy.
#pragma once
#include <libaio.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

#pragma clang assume_nonnull begin

/// Prepares a read, write or flush. A plain read or write takes the address of its bytes and their number, a
/// vectored one the address of its vectors and their number.
static inline void caio_prepare(struct iocb *block, int fd, short opcode, void *_Nullable what,
                                unsigned long count, int64_t byte_offset, int rw_flags, uint64_t tag) {
  __builtin_memset(block, 0, sizeof *block);
  block->aio_fildes = fd;
  block->aio_lio_opcode = opcode;
  block->aio_rw_flags = rw_flags;
  block->data = (void *)(uintptr_t)tag;
  block->u.c.buf = what;
  block->u.c.nbytes = count;
  block->u.c.offset = byte_offset;
}

/// Prepares waiting, once, until `fd` is readable.
static inline void caio_prepare_poll(struct iocb *block, int fd, uint64_t tag) {
  __builtin_memset(block, 0, sizeof *block);
  block->aio_fildes = fd;
  block->aio_lio_opcode = IO_CMD_POLL;
  block->data = (void *)(uintptr_t)tag;
  block->u.poll.events = POLLIN;
}

/// The head of the completion ring that the kernel maps at the address of an AIO context.
struct caio_ring {
  unsigned id, count, head, tail;
  unsigned magic, compatible_features, incompatible_features, header_byte_count;
  struct io_event events[];
};

#define CAIO_RING_MAGIC 0xa10a10a1

/// Takes up to `limit` completions from the ring without a system call.
/// Returns their number, or -1 when the ring has a layout that this code does not know.
static inline int caio_ring_take(io_context_t context, struct io_event *events, int limit) {
  struct caio_ring *ring = (struct caio_ring *)context;
  if (ring->magic != CAIO_RING_MAGIC || ring->incompatible_features != 0) return -1;
  int taken = 0;
  unsigned head = ring->head;
  unsigned tail = __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
  while (taken < limit && head != tail) {
    events[taken++] = ring->events[head];
    head = head + 1 == ring->count ? 0 : head + 1;
  }
  if (taken > 0) __atomic_store_n(&ring->head, head, __ATOMIC_RELEASE);
  return taken;
}

/// Whether the ring holds completions; 0 also when its layout is unknown.
static inline int caio_ring_has_any(io_context_t context) {
  struct caio_ring *ring = (struct caio_ring *)context;
  if (ring->magic != CAIO_RING_MAGIC || ring->incompatible_features != 0) return 0;
  return ring->head != __atomic_load_n(&ring->tail, __ATOMIC_ACQUIRE);
}

#pragma clang assume_nonnull end
