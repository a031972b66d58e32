/* What check.c needs: golden vectors (golden.c) and a platform (platform.c). */

#ifndef EDGEQ_CHECK_H
#define EDGEQ_CHECK_H

#include <stddef.h>
#include <stdint.h>

#ifdef __wasm__ /* where there is no C library: libc_wasm.c */
void *memset(void *to, int value, size_t size);
void *memcpy(void *to, const void *from, size_t size);
int memcmp(const void *left, const void *right, size_t size);
size_t strlen(const char *text);
#else
#include <string.h>
#endif

struct edgeq_tensor {
  const char *name;
  const char *writer;      /* the kernel that writes it, and what that computes */
  const char *type;        /* such as "uint8[1, 3, 32, 32]" */
  uint32_t size;           /* of an element, in bytes */
  uint32_t elements;
  uint32_t rank;
  const uint32_t *shape;
  const uint32_t *strides; /* in elements, along each axis of `shape`; null: in order */
};

/* Of golden vectors; runs lie one after another. */
extern const uint32_t edgeq_golden_runs;
extern const struct edgeq_tensor edgeq_golden_inputs[];
extern const unsigned char *const edgeq_golden_input_bytes[];
extern const struct edgeq_tensor edgeq_golden_outputs[];
extern const unsigned char *const edgeq_golden_output_bytes[];

/* Of every quantized tensor: digests of one run lie one after another, each of 32 bytes. */
extern const uint32_t edgeq_taps;
extern const struct edgeq_tensor edgeq_tap_tensors[];
extern const unsigned char edgeq_tap_digests[];

/* The platform. */
void edgeq_put(const char *text);
void *edgeq_allocate(size_t size, size_t alignment); /* reads and writes beyond `size` are faults */
uint64_t edgeq_nanoseconds(void);                    /* 0 where there is no clock */

int edgeq_check(void); /* 0: all bytes are equal */

struct edgeq_sha256 {
  uint32_t state[8];
  uint64_t length;
  unsigned char block[64];
};

void edgeq_sha256_start(struct edgeq_sha256 *hash);
void edgeq_sha256_add(struct edgeq_sha256 *hash, const void *data, size_t size);
void edgeq_sha256_end(struct edgeq_sha256 *hash, unsigned char digest[32]);

#endif
