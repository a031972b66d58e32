/* What compilers call without being asked. */

#include <stddef.h>

void *memset(void *to, int value, size_t size) {
  for (unsigned char *p = to; size-- > 0;) *p++ = (unsigned char)value;
  return to;
}

void *memcpy(void *to, const void *from, size_t size) {
  const unsigned char *q = from;
  for (unsigned char *p = to; size-- > 0;) *p++ = *q++;
  return to;
}

void *memmove(void *to, const void *from, size_t size) { return __builtin_memmove(to, from, size); }

int memcmp(const void *left, const void *right, size_t size) {
  const unsigned char *p = left, *q = right;
  for (; size-- > 0; ++p, ++q)
    if (*p != *q) return *p - *q;
  return 0;
}

size_t strlen(const char *text) {
  size_t size = 0;
  while (text[size] != 0) ++size;
  return size;
}
