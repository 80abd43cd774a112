// SPDX-License-Identifier: Apache-2.0
//
// Runs a program again and again without starting it again: preloaded (LD_PRELOAD), it stops the program in front of
// main, when it is linked and its libraries are set up, and for each request forks a child that goes on into main with
// the request's words. What runs is the program's own code, whole, in a fresh process; only exec and the dynamic
// linker are saved. tools/lib/resident.py speaks to it: tools/powercut runs qemu-img some 100,000 times.
//
// A request on descriptor 198: 4 bytes (length), then the words, each ended by 0. The child's output goes to descriptor
// 200, which is emptied before. The answer on descriptor 199: 4 bytes, the status of waitpid. Numbers are the host's.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { requests = 198, answers = 199, output = 200, words_max = 64 };

typedef int (*start_main)(int (*)(int, char **, char **), int, char **, void (*)(void), void (*)(void),
                          void (*)(void), void *);

static int read_all(void *place, size_t length) {
  for (size_t done = 0; done < length;) {
    ssize_t count = read(requests, (char *)place + done, length - done);
    if (count <= 0) return 0;
    done += (size_t)count;
  }
  return 1;
}

int __libc_start_main(int (*main)(int, char **, char **), int argc, char **argv, void (*init)(void),
                      void (*fini)(void), void (*rtld_fini)(void), void *stack_end) {
  start_main next = (start_main)dlsym(RTLD_NEXT, "__libc_start_main");
  char text[8192], *words[words_max];
  (void)argc;
  for (;;) {
    uint32_t length;
    // the other end is closed: nobody wants us any more
    if (!read_all(&length, sizeof length) || length >= sizeof text || !read_all(text, length)) _exit(0);
    text[length] = 0;
    if (ftruncate(output, 0)) _exit(1);
    lseek(output, 0, SEEK_SET);
    pid_t child = fork();
    if (child == 0) {
      int count = 0;
      words[count++] = argv[0];
      for (char *word = text; word < text + length && count < words_max - 1; word += strlen(word) + 1)
        words[count++] = word;
      words[count] = NULL;
      dup2(output, 1);
      dup2(output, 2);
      close(requests);
      close(answers);
      close(output);
      unsetenv("LD_PRELOAD");
      exit(next(main, count, words, init, fini, rtld_fini, stack_end));
    }
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) < 0) _exit(1);
    if (write(answers, &status, sizeof status) != sizeof status) _exit(1);
  }
}
