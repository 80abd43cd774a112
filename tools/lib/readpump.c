// SPDX-License-Identifier: Apache-2.0
//
// A client that does as little as a client can: random reads of 4 KiB, so many in flight, over one
// UNIX socket, with the shape of headers that is asked for. fio's client ends near 200 thousand a
// second and knows no extended headers; this one shows what the server can, and what each shape costs
// it. Data is counted, not looked at. Used by tools/bench.
//
//   readpump SOCKET EXPORT simple|structured|extended DEPTH SECONDS
//
// Prints one line of JSON. Spec: proto.md and its branch extension-ext-header. Ends by SIGALRM if
// anything hangs.

#define _GNU_SOURCE
#include <endian.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { block = 4096, depthMax = 1024, bufferSize = 1 << 20 };
enum { optGo = 7, optStructured = 8, optExtended = 11 };

static int sock;
static unsigned char buffer[bufferSize];
static size_t bufferStart, bufferEnd;

static void fail(const char *what) {
  perror(what);
  exit(1);
}

static void put(unsigned char *at, uint64_t value, int bytes) {
  for (int i = 0; i < bytes; i++) at[i] = (unsigned char)(value >> 8 * (bytes - 1 - i));
}

static uint64_t get(const unsigned char *at, int bytes) {
  uint64_t value = 0;
  for (int i = 0; i < bytes; i++) value = value << 8 | at[i];
  return value;
}

static void sendAll(const void *bytes, size_t count) {
  const unsigned char *at = bytes;
  while (count > 0) {
    ssize_t sent = send(sock, at, count, MSG_NOSIGNAL);
    if (sent <= 0) fail("send");
    at += sent;
    count -= (size_t)sent;
  }
}

/// Makes `count` bytes lie at `buffer + bufferStart`.
static void need(size_t count) {
  if (bufferEnd - bufferStart >= count) return;
  memmove(buffer, buffer + bufferStart, bufferEnd - bufferStart);
  bufferEnd -= bufferStart;
  bufferStart = 0;
  while (bufferEnd < count) {
    ssize_t got = recv(sock, buffer + bufferEnd, bufferSize - bufferEnd, 0);
    if (got <= 0) fail("recv");
    bufferEnd += (size_t)got;
  }
}

static const unsigned char *take(size_t count) {
  need(count);
  bufferStart += count;
  return buffer + bufferStart - count;
}

static void sendOption(uint32_t option, const void *payload, uint32_t count) {
  unsigned char header[16];
  memcpy(header, "IHAVEOPT", 8);
  put(header + 8, option, 4);
  put(header + 12, count, 4);
  sendAll(header, sizeof header);
  sendAll(payload, count);
}

/// Reads replies until the option is acknowledged; returns the export's size if they tell it.
static uint64_t untilAck(void) {
  uint64_t size = 0;
  for (;;) {
    const unsigned char *header = take(20);
    uint32_t type = (uint32_t)get(header + 12, 4), length = (uint32_t)get(header + 16, 4);
    const unsigned char *payload = take(length);
    if (type == 1) return size;
    if (type >> 31) {
      fprintf(stderr, "the server refuses an option: %.*s\n", (int)length, payload);
      exit(3);
    }
    if (type == 3 && get(payload, 2) == 0) size = get(payload + 2, 8);
  }
}

static uint64_t state = 88172645463325252u;

static uint64_t randomOffset(uint64_t size) {
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return state % (size / block) * block;
}

/// Encodes a READ and returns its length.
static size_t encodeRead(unsigned char *at, int isExtended, uint64_t cookie, uint64_t offset) {
  put(at, isExtended ? 0x21e41c71u : 0x25609513u, 4);
  put(at + 4, 0, 4);
  put(at + 8, cookie, 8);
  put(at + 16, offset, 8);
  put(at + 24, block, isExtended ? 8 : 4);
  return isExtended ? 32 : 28;
}

/// Takes one reply or chunk; returns whether it ended its request.
static int takeReply(int isExtended) {
  need(16);
  uint32_t magic = (uint32_t)get(buffer + bufferStart, 4);
  if (magic == 0x67446698) {
    if (get(take(16) + 4, 4)) exit(4);
    take(block);
    return 1;
  }
  const unsigned char *header = take(isExtended ? 32 : 20);
  if (magic != (isExtended ? 0x6e8a278cu : 0x668e33efu)) exit(5);
  int isLast = get(header + 4, 2) & 1;
  if (get(header + 6, 2) >> 15) exit(6);
  size_t length = isExtended ? (size_t)get(header + 24, 8) : (size_t)get(header + 16, 4);
  take(length);
  return isLast;
}

int main(int count, char **words) {
  if (count != 6) return 2;
  alarm(60);
  int isExtended = !strcmp(words[3], "extended"), depth = atoi(words[4]);
  double seconds = atof(words[5]);
  if (depth < 1 || depth > depthMax) return 2;
  struct sockaddr_un address = {.sun_family = AF_UNIX};
  strncpy(address.sun_path, words[1], sizeof address.sun_path - 1);
  sock = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (connect(sock, (struct sockaddr *)&address, sizeof address)) fail("connect");
  take(18);
  unsigned char flags[4] = {0, 0, 0, 3};
  sendAll(flags, 4);
  if (strcmp(words[3], "simple")) {
    sendOption(isExtended ? optExtended : optStructured, "", 0);
    untilAck();
  }
  unsigned char go[4096 + 6];
  uint32_t nameLength = (uint32_t)strlen(words[2]);
  put(go, nameLength, 4);
  memcpy(go + 4, words[2], nameLength);
  put(go + 4 + nameLength, 0, 2);
  sendOption(optGo, go, nameLength + 6);
  uint64_t size = untilAck();

  unsigned char requests[depthMax * 32];
  struct timespec start, now;
  clock_gettime(CLOCK_MONOTONIC, &start);
  uint64_t done = 0, cookie = 0;
  int wanted = depth;
  double elapsed = 0;
  for (;;) {
    size_t length = 0;
    for (; wanted > 0; wanted--)
      length += encodeRead(requests + length, isExtended, ++cookie, randomOffset(size));
    sendAll(requests, length);
    // what has come is taken together, and answered with as many requests in one send
    do {
      if (takeReply(isExtended)) {
        wanted++;
        done++;
      }
    } while (bufferEnd > bufferStart && wanted < depth);
    if (done % 64 < (uint64_t)wanted) {
      clock_gettime(CLOCK_MONOTONIC, &now);
      elapsed = (double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) / 1e9;
      if (elapsed >= seconds) break;
    }
  }
  // nbdkit 1.32 aborts when a client leaves with requests in flight
  for (int left = depth - wanted; left > 0;) left -= takeReply(isExtended);
  unsigned char goodbye[32] = {0};
  encodeRead(goodbye, isExtended, ++cookie, 0);
  put(goodbye + 6, 2, 2);
  put(goodbye + 24, 0, isExtended ? 8 : 4);
  sendAll(goodbye, isExtended ? 32 : 28);
  printf("{\"requests\": %llu, \"seconds\": %.6f}\n", (unsigned long long)done, elapsed);
  return 0;
}
