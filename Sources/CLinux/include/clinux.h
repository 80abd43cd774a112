// SPDX-License-Identifier: Apache-2.0
//
// Linux calls and constants that Swift's Glibc overlay hides. Every function returns -errno on
// failure, holds no policy and has no branch but the one on errno.
#pragma once
#include <stddef.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/uio.h>

#pragma clang assume_nonnull begin

enum {
  CLINUX_O_DIRECT = 0x4000,
  CLINUX_O_PATH = 0x200000,
  CLINUX_RWF_DSYNC = 0x2,
  CLINUX_SEEK_DATA = 3,
  CLINUX_SEEK_HOLE = 4,
  CLINUX_FALLOC_KEEP_SIZE = 0x1,
  CLINUX_FALLOC_PUNCH_HOLE = 0x2,
  CLINUX_FALLOC_ZERO_RANGE = 0x10,
};

// -- Files -----------------------------------------------------------------------------------
int clinux_open(const char *path, int flags, unsigned mode);
int clinux_openat(int folder, const char *path, int flags, unsigned mode);
/// Opens what is below `folder`, if no link leads there: -EXDEV or -ELOOP otherwise.
int clinux_open_beneath(int folder, const char *path, int flags);

/// Turns O_DIRECT on or off for an open descriptor.
int clinux_set_direct(int fd, int on);
int clinux_set_nonblocking(int fd);

/// Memory and offset alignment that O_DIRECT needs on `fd`; 0 when the filesystem does not tell.
int clinux_dio_alignment(int fd, uint32_t *memory_alignment,
                          uint32_t *offset_alignment);
int clinux_fallocate(int fd, int mode, int64_t offset, int64_t length);

/// Size in bytes of a block device.
int clinux_block_device_size(int fd, uint64_t *byte_count);
int clinux_block_discard(int fd, uint64_t offset, uint64_t length);
int clinux_block_zero(int fd, uint64_t offset, uint64_t length);

/// An ioctl whose argument is a number, not a pointer.
int clinux_control(int fd, unsigned long request, unsigned long value);

/// Takes (or, with F_UNLCK, drops) an open-file-description lock on a byte range.
int clinux_ofd_lock(int fd, short type, int64_t start, int64_t length);

/// Returns 1 when a lock of `type` would conflict with somebody else's, 0 when it would not.
int clinux_ofd_lock_would_conflict(int fd, short type, int64_t start,
                                    int64_t length);
int64_t clinux_seek(int fd, int64_t offset, int whence);

/// Writes at `offset`; `is_durable` asks for RWF_DSYNC. Sets errno and returns -1 on failure, as
/// pwritev2(2) does.
long clinux_write(int fd, const struct iovec *vectors, int vector_count, int64_t offset,
                  int is_durable);

// -- Events ----------------------------------------------------------------------------------
int clinux_epoll_create(void);

/// Adds, changes or removes (`operation`) the interest in `fd`; `token` comes back with its events.
int clinux_epoll_control(int epoll_fd, int operation, int fd, uint32_t events,
                          uint64_t token);
int clinux_epoll_wait(int epoll_fd, struct epoll_event *events, int limit,
                       int timeout_milliseconds);
uint64_t clinux_epoll_token(const struct epoll_event *event);
int clinux_eventfd(int is_semaphore, int is_nonblocking);

/// Blocks the stopping signals for this thread and returns a descriptor that reports them.
int clinux_signalfd(const int *signals, int count);
int clinux_timerfd(void);

/// Arms a timer to fire each `milliseconds`; 0 disarms it.
int clinux_timerfd_arm(int fd, int64_t milliseconds);

// -- Sockets ---------------------------------------------------------------------------------
int clinux_accept(int listener);
int64_t clinux_send(int socket, struct iovec *vectors, int vector_count);
int64_t clinux_receive(int socket, struct iovec *vectors, int vector_count);

/// The same for one range of bytes, which costs the kernel less to understand.
int64_t clinux_send_plain(int socket, const void *bytes, size_t byte_count);
int64_t clinux_receive_plain(int socket, void *bytes, size_t byte_count);
int clinux_set_socket_option(int socket, int level, int name, int value);

/// User, group and process of the other end of a UNIX socket, as they were when it connected.
int clinux_peer_credentials(int socket, uint32_t *user, uint32_t *group, int32_t *process);

/// A close-on-exec, non-blocking socket.
int clinux_socket(int family, int type);

/// Binds or connects to a UNIX socket's path of `byte_count` bytes, without its final zero; a path
/// whose first byte is zero is an abstract address (unix(7)). ENAMETOOLONG above 107 bytes.
int clinux_bind_unix(int socket, const void *path, size_t byte_count);
int clinux_connect_unix(int socket, const void *path, size_t byte_count);

/// Binds to a port of vsock(7), for whoever can reach it.
int clinux_bind_vsock(int socket, uint32_t port);

/// The other end of a vsock; EAFNOSUPPORT for a socket of another family.
int clinux_peer_vsock(int socket, uint32_t *context_id, uint32_t *port);

/// Starts connecting to a virtual machine or its host (vsock(7)).
int clinux_connect_vsock(int socket, uint32_t context_id, uint32_t port);

/// A generic netlink socket that talks to the kernel and to nobody else (netlink(7)); refusals come
/// with a text and without the request.
int clinux_generic_netlink(void);

/// Receives one datagram without waiting; the result is its whole length, even when that is above
/// `byte_count` (MSG_TRUNC).
int64_t clinux_receive_datagram(int socket, void *bytes, size_t byte_count);

// -- Processes -------------------------------------------------------------------------------

/// Swift hides fork; it may only be called while the process has one thread.
int clinux_fork(void);

/// Two connected UNIX stream sockets, close-on-exec and non-blocking.
int clinux_socket_pair(int *ends);

/// Closes every descriptor from `first` on.
int clinux_close_from(int first);

/// prctl(2) is variadic, so Swift does not import it. The readers return 0 or 1.
int clinux_set_no_new_privileges(void);
int clinux_no_new_privileges(void);
int clinux_set_dumpable(int is_dumpable);
int clinux_dumpable(void);

/// The kernel may need this process to write its dirty pages: allocations of the process do not wait
/// for that (PR_SET_IO_FLUSHER, CAP_SYS_RESOURCE).
int clinux_set_io_flusher(void);

/// Keeps every page of the process in memory, those of the future too, once it was used.
int clinux_lock_memory(void);

// -- Memory ----------------------------------------------------------------------------------

/// Maps `byte_count` zeroed bytes, page-aligned; NULL when there are none.
void *_Nullable clinux_map(size_t byte_count);

#pragma clang assume_nonnull end
