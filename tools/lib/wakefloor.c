// SPDX-License-Identifier: Apache-2.0
//
// What a request costs when nothing is done but the ping-pong on a UNIX socket: a client sends 28 bytes
// (an NBD request), a server in a process of its own answers 4112 (a reply with 4 KiB), one at a time.
// Both sleep in recv(2); with "spin" the server asks again and again instead. Used by tools/bench.
//
//   wakefloor SECONDS SERVER_CORE CLIENT_CORE sleep|spin        a core of -1: not pinned
//
// Prints one line of JSON. Both processes end by SIGALRM if anything hangs.

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { requestSize = 28, replySize = 16 + 4096 };
enum { bucketNanoseconds = 100, bucketCount = 100000 };

static uint32_t buckets[bucketCount + 1];  // round trips by their time; the last one: 10 ms and more

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void pinTo(int core) {
  if (core < 0) return;
  cpu_set_t cores;
  CPU_ZERO(&cores);
  CPU_SET(core, &cores);
  if (sched_setaffinity(0, sizeof cores, &cores)) fail("sched_setaffinity");
}

static double nowNanoseconds(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1e9 + now.tv_nsec;
}

/// Fills `buffer`; returns 0 when the other side has closed the socket.
static int receiveAll(int socket, char *buffer, size_t size, int flags) {
  for (size_t done = 0; done < size;) {
    ssize_t count = recv(socket, buffer + done, size - done, flags);
    if (count == 0) return 0;
    if (count < 0 && errno != EAGAIN && errno != EINTR) fail("recv");
    if (count > 0) done += count;
  }
  return 1;
}

static void sendAll(int socket, const char *buffer, size_t size) {
  for (size_t done = 0; done < size;) {
    ssize_t count = send(socket, buffer + done, size - done, MSG_NOSIGNAL);
    if (count < 0 && errno != EINTR) fail("send");
    if (count > 0) done += count;
  }
}

static void serve(int socket, int flags) {
  char request[requestSize], reply[replySize];
  memset(reply, 1, sizeof reply);
  while (receiveAll(socket, request, sizeof request, flags)) sendAll(socket, reply, sizeof reply);
}

/// Returns the count of round trips, and fills `buckets`.
static uint64_t ask(int socket, double seconds, double *elapsed) {
  char request[requestSize] = {0}, reply[replySize];
  uint64_t count = 0;
  double begin = nowNanoseconds(), before = begin, end = begin + seconds * 1e9;
  while (before < end) {
    sendAll(socket, request, sizeof request);
    if (!receiveAll(socket, reply, sizeof reply, 0)) fail("wakefloor: the server is gone");
    double now = nowNanoseconds();
    uint64_t bucket = (uint64_t)((now - before) / bucketNanoseconds);
    buckets[bucket < bucketCount ? bucket : bucketCount]++;
    before = now;
    count++;
  }
  *elapsed = before - begin;
  return count;
}

static double percentileMicroseconds(uint64_t count, double share) {
  uint64_t seen = 0;
  for (int bucket = 0; bucket <= bucketCount; bucket++) {
    seen += buckets[bucket];
    if (seen >= count * share) return (bucket + 0.5) * bucketNanoseconds / 1000;
  }
  return 0;
}

int main(int argc, char **argv) {
  if (argc != 5) {
    fprintf(stderr, "wakefloor SECONDS SERVER_CORE CLIENT_CORE sleep|spin\n");
    return 2;
  }
  double seconds = atof(argv[1]), elapsed;
  int sockets[2];
  if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets)) fail("socketpair");
  pid_t server = fork();
  if (server < 0) fail("fork");
  alarm((unsigned)seconds + 10);
  if (server == 0) {
    close(sockets[0]);
    pinTo(atoi(argv[2]));
    serve(sockets[1], strcmp(argv[4], "spin") == 0 ? MSG_DONTWAIT : 0);
    return 0;
  }
  close(sockets[1]);
  pinTo(atoi(argv[3]));
  uint64_t warmUpCount = ask(sockets[0], 0.02, &elapsed);  // until both are where they belong
  memset(buckets, 0, sizeof buckets);
  uint64_t count = ask(sockets[0], seconds, &elapsed);
  close(sockets[0]);
  struct rusage usage;
  int status;
  if (wait4(server, &status, 0, &usage) != server || status != 0) fail("the server failed");
  double cpuMicroseconds = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1e6
    + usage.ru_utime.tv_usec + usage.ru_stime.tv_usec;
  printf("{\"requests\": %llu, \"seconds\": %.6f, \"cpu_us_per_request\": %.2f, "
         "\"p50_us\": %.2f, \"p99_us\": %.2f}\n",
         (unsigned long long)count, elapsed / 1e9, cpuMicroseconds / (count + warmUpCount),
         percentileMicroseconds(count, 0.5), percentileMicroseconds(count, 0.99));
  return 0;
}
