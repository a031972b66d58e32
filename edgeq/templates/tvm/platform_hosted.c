/* An operating system. Where it has pages, each piece of memory ends at one that cannot be touched:
   a kernel that reads or writes behind a buffer crashes. */

#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "check.h"

#if defined(__unix__) && !defined(__SANITIZE_ADDRESS__)
#include <sys/mman.h>
#include <unistd.h>

void *edgeq_allocate(size_t size, size_t alignment) {
  size_t page = (size_t)sysconf(_SC_PAGESIZE), used = (size + page - 1) / page * page;
  unsigned char *start =
      mmap(NULL, used + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (start == MAP_FAILED || mprotect(start + used, page, PROT_NONE) != 0) return NULL;
  return start + (used - size) / alignment * alignment;
}
#else
void *edgeq_allocate(size_t size, size_t alignment) {
  return alignment <= 8 ? malloc(size) : aligned_alloc(alignment, size == 0 ? alignment : size);
}
#endif

#ifdef __SANITIZE_ADDRESS__
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; } /* the process ends */
#endif

void edgeq_put(const char *text) { fputs(text, stdout); }

uint64_t edgeq_nanoseconds(void) {
  struct timespec now = {0, 0};
#ifdef CLOCK_MONOTONIC
  clock_gettime(CLOCK_MONOTONIC, &now);
#else
  timespec_get(&now, TIME_UTC);
#endif
  return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

int main(void) { return edgeq_check(); }
