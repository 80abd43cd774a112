// SPDX-License-Identifier: Apache-2.0
//
// The bodies of clinux.h. _GNU_SOURCE is defined here and not in the header, because Swift's own
// import of the C library is built without it and the two views of a type must agree.
#define _GNU_SOURCE
#include "clinux.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/netlink.h>
#include <linux/openat2.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <linux/vm_sockets.h>
#include <time.h>
#include <unistd.h>

_Static_assert(CLINUX_O_DIRECT == O_DIRECT, "O_DIRECT differs on this machine");
_Static_assert(CLINUX_O_PATH == O_PATH, "O_PATH differs on this machine");
_Static_assert(CLINUX_RWF_DSYNC == RWF_DSYNC, "RWF_DSYNC differs on this machine");
_Static_assert(CLINUX_SEEK_DATA == SEEK_DATA, "SEEK_DATA differs on this machine");
_Static_assert(CLINUX_SEEK_HOLE == SEEK_HOLE, "SEEK_HOLE differs on this machine");

#pragma clang assume_nonnull begin

static long clinux_result(long value) { return value < 0 ? -errno : value; }

// -- Files -----------------------------------------------------------------------------------


int clinux_open(const char *path, int flags, unsigned mode) {
  return (int)clinux_result(open(path, flags, mode));
}

int clinux_openat(int folder, const char *path, int flags, unsigned mode) {
  return (int)clinux_result(openat(folder, path, flags, mode));
}

int clinux_open_beneath(int folder, const char *path, int flags) {
  struct open_how how = {
      .flags = (uint64_t)(unsigned)flags,
      .resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS,
  };
  return (int)clinux_result(syscall(SYS_openat2, folder, path, &how, sizeof how));
}

int clinux_set_direct(int fd, int on) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  return (int)clinux_result(fcntl(fd, F_SETFL, on ? flags | O_DIRECT : flags & ~O_DIRECT));
}

int clinux_set_nonblocking(int fd) {
  int flags = fcntl(fd, F_GETFL);
  if (flags < 0) return -errno;
  return (int)clinux_result(fcntl(fd, F_SETFL, flags | O_NONBLOCK));
}

int clinux_dio_alignment(int fd, uint32_t *memory_alignment,
                                       uint32_t *offset_alignment) {
  *memory_alignment = 0;
  *offset_alignment = 0;
#ifdef STATX_DIOALIGN
  struct statx status;
  if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &status) < 0) return -errno;
  if (status.stx_mask & STATX_DIOALIGN) {
    *memory_alignment = status.stx_dio_mem_align;
    *offset_alignment = status.stx_dio_offset_align;
  }
#else
  // The kernel fills what this C library has no name for yet: STATX_DIOALIGN is 0x2000, and the
  // two fields follow stx_mnt_id at byte 152 (linux/stat.h).
  union {
    struct statx named;
    unsigned char bytes[256];
  } status;
  memset(&status, 0, sizeof status);
  if (statx(fd, "", AT_EMPTY_PATH, 0x2000, &status.named) < 0) return -errno;
  if (status.named.stx_mask & 0x2000) {
    memcpy(memory_alignment, status.bytes + 152, 4);
    memcpy(offset_alignment, status.bytes + 156, 4);
  }
#endif
  return 0;
}

int clinux_fallocate(int fd, int mode, int64_t offset, int64_t length) {
  return (int)clinux_result(fallocate(fd, mode, offset, length));
}

int clinux_block_device_size(int fd, uint64_t *byte_count) {
  return (int)clinux_result(ioctl(fd, BLKGETSIZE64, byte_count));
}

int clinux_block_discard(int fd, uint64_t offset, uint64_t length) {
  uint64_t range[2] = {offset, length};
  return (int)clinux_result(ioctl(fd, BLKDISCARD, range));
}

int clinux_block_zero(int fd, uint64_t offset, uint64_t length) {
  uint64_t range[2] = {offset, length};
  return (int)clinux_result(ioctl(fd, BLKZEROOUT, range));
}

int clinux_control(int fd, unsigned long request, unsigned long value) {
  return (int)clinux_result(ioctl(fd, request, value));
}

int clinux_ofd_lock(int fd, short type, int64_t start, int64_t length) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  return (int)clinux_result(fcntl(fd, F_OFD_SETLK, &lock));
}

int clinux_ofd_lock_would_conflict(int fd, short type, int64_t start,
                                                 int64_t length) {
  struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = length};
  if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -errno;
  return lock.l_type != F_UNLCK;
}


int64_t clinux_seek(int fd, int64_t offset, int whence) {
  return clinux_result(lseek(fd, offset, whence));
}

long clinux_write(int fd, const struct iovec *vectors, int vector_count, int64_t offset,
                  int is_durable) {
  return pwritev2(fd, vectors, vector_count, offset, is_durable ? RWF_DSYNC : 0);
}

// -- Events ----------------------------------------------------------------------------------

int clinux_epoll_create(void) {
  return (int)clinux_result(epoll_create1(EPOLL_CLOEXEC));
}

int clinux_epoll_control(int epoll_fd, int operation, int fd, uint32_t events,
                                       uint64_t token) {
  struct epoll_event event = {.events = events, .data = {.u64 = token}};
  return (int)clinux_result(epoll_ctl(epoll_fd, operation, fd, &event));
}

int clinux_epoll_wait(int epoll_fd, struct epoll_event *events, int limit,
                                    int timeout_milliseconds) {
  return (int)clinux_result(epoll_wait(epoll_fd, events, limit, timeout_milliseconds));
}

uint64_t clinux_epoll_token(const struct epoll_event *event) {
  return event->data.u64;
}

int clinux_eventfd(int is_semaphore, int is_nonblocking) {
  return (int)clinux_result(eventfd(0, EFD_CLOEXEC | (is_semaphore ? EFD_SEMAPHORE : 0) |
                                           (is_nonblocking ? EFD_NONBLOCK : 0)));
}

int clinux_signalfd(const int *signals, int count) {
  sigset_t set;
  sigemptyset(&set);
  for (int index = 0; index < count; index++) sigaddset(&set, signals[index]);
  if (sigprocmask(SIG_BLOCK, &set, NULL) < 0) return -errno;
  return (int)clinux_result(signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK));
}

int clinux_timerfd(void) {
  return (int)clinux_result(timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK));
}

int clinux_timerfd_arm(int fd, int64_t milliseconds) {
  struct timespec period = {.tv_sec = milliseconds / 1000,
                            .tv_nsec = milliseconds % 1000 * 1000000};
  struct itimerspec setting = {.it_interval = period, .it_value = period};
  return (int)clinux_result(timerfd_settime(fd, 0, &setting, NULL));
}

// -- Sockets ---------------------------------------------------------------------------------

int clinux_accept(int listener) {
  return (int)clinux_result(accept4(listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

int64_t clinux_send(int socket, struct iovec *vectors, int vector_count) {
  struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)vector_count};
  return clinux_result(sendmsg(socket, &message, MSG_NOSIGNAL | MSG_DONTWAIT));
}

int64_t clinux_send_plain(int socket, const void *bytes, size_t byte_count) {
  return clinux_result(send(socket, bytes, byte_count, MSG_NOSIGNAL | MSG_DONTWAIT));
}

int64_t clinux_receive_plain(int socket, void *bytes, size_t byte_count) {
  return clinux_result(recv(socket, bytes, byte_count, MSG_DONTWAIT));
}

int64_t clinux_receive(int socket, struct iovec *vectors, int vector_count) {
  struct msghdr message = {.msg_iov = vectors, .msg_iovlen = (size_t)vector_count};
  return clinux_result(recvmsg(socket, &message, MSG_DONTWAIT));
}

int clinux_set_socket_option(int socket, int level, int name, int value) {
  return (int)clinux_result(setsockopt(socket, level, name, &value, sizeof value));
}

int clinux_peer_credentials(int socket, uint32_t *user, uint32_t *group, int32_t *process) {
  struct ucred peer = {.pid = 0, .uid = 0, .gid = 0};
  socklen_t size = sizeof peer;
  int result = (int)clinux_result(getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &peer, &size));
  *user = peer.uid;
  *group = peer.gid;
  *process = peer.pid;
  return result;
}

int clinux_socket(int family, int type) {
  return (int)clinux_result(socket(family, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
}

static socklen_t clinux_unix_address(struct sockaddr_un *address, const void *path,
                                     size_t byte_count) {
  *address = (struct sockaddr_un){.sun_family = AF_UNIX};
  if (byte_count == 0 || byte_count >= sizeof address->sun_path) return 0;
  memcpy(address->sun_path, path, byte_count);
  // A file's path is counted with its final zero, an abstract one without.
  return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + byte_count +
                     (address->sun_path[0] != 0));
}

int clinux_bind_unix(int socket, const void *path, size_t byte_count) {
  struct sockaddr_un address;
  socklen_t size = clinux_unix_address(&address, path, byte_count);
  if (size == 0) return -ENAMETOOLONG;
  return (int)clinux_result(bind(socket, (struct sockaddr *)&address, size));
}

int clinux_connect_unix(int socket, const void *path, size_t byte_count) {
  struct sockaddr_un address;
  socklen_t size = clinux_unix_address(&address, path, byte_count);
  if (size == 0) return -ENAMETOOLONG;
  return (int)clinux_result(connect(socket, (struct sockaddr *)&address, size));
}

int clinux_bind_vsock(int socket, uint32_t port) {
  struct sockaddr_vm address = {
      .svm_family = AF_VSOCK, .svm_port = port, .svm_cid = VMADDR_CID_ANY};
  return (int)clinux_result(bind(socket, (struct sockaddr *)&address, sizeof address));
}

int clinux_peer_vsock(int socket, uint32_t *context_id, uint32_t *port) {
  struct sockaddr_vm address = {0};
  socklen_t byte_count = sizeof address;
  int result =
      (int)clinux_result(getpeername(socket, (struct sockaddr *)&address, &byte_count));
  if (result < 0) return result;
  if (address.svm_family != AF_VSOCK) return -EAFNOSUPPORT;
  *context_id = address.svm_cid;
  *port = address.svm_port;
  return 0;
}

int clinux_connect_vsock(int socket, uint32_t context_id, uint32_t port) {
  struct sockaddr_vm address = {
      .svm_family = AF_VSOCK, .svm_cid = context_id, .svm_port = port};
  return (int)clinux_result(connect(socket, (struct sockaddr *)&address, sizeof address));
}

int clinux_generic_netlink(void) {
  struct sockaddr_nl kernel = {.nl_family = AF_NETLINK};
  int one = 1;
  int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC | SOCK_NONBLOCK, NETLINK_GENERIC);
  if (fd < 0) return -errno;
  // Wishes: without them refusals are less clear.
  setsockopt(fd, SOL_NETLINK, NETLINK_EXT_ACK, &one, sizeof one);
  setsockopt(fd, SOL_NETLINK, NETLINK_CAP_ACK, &one, sizeof one);
  if (connect(fd, (struct sockaddr *)&kernel, sizeof kernel) < 0) {
    int number = errno;
    close(fd);
    return -number;
  }
  return fd;
}

int64_t clinux_receive_datagram(int socket, void *bytes, size_t byte_count) {
  return clinux_result(recv(socket, bytes, byte_count, MSG_DONTWAIT | MSG_TRUNC));
}

// -- Processes -------------------------------------------------------------------------------

int clinux_fork(void) { return (int)clinux_result(fork()); }

int clinux_socket_pair(int *ends) {
  return (int)clinux_result(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends));
}

int clinux_close_from(int first) {
  return (int)clinux_result(syscall(SYS_close_range, (unsigned)first, ~0U, 0));
}

int clinux_set_no_new_privileges(void) {
  return (int)clinux_result(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
}

int clinux_no_new_privileges(void) {
  return (int)clinux_result(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0));
}

int clinux_set_dumpable(int is_dumpable) {
  return (int)clinux_result(prctl(PR_SET_DUMPABLE, is_dumpable, 0, 0, 0));
}

int clinux_dumpable(void) { return (int)clinux_result(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0)); }

int clinux_set_io_flusher(void) {
  // PR_SET_IO_FLUSHER, which older headers do not name.
  return (int)clinux_result(prctl(57, 1, 0, 0, 0));
}

int clinux_lock_memory(void) {
  return (int)clinux_result(mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT));
}

// -- Memory ----------------------------------------------------------------------------------

void *_Nullable clinux_map(size_t byte_count) {
  void *address =
      mmap(NULL, byte_count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return address == MAP_FAILED ? NULL : address;
}

#pragma clang assume_nonnull end
