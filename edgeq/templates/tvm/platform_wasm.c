/* WebAssembly without imports: text is collected for the caller, memory grows. */

#include "check.h"

#define EXPORT(name) __attribute__((export_name(#name)))

static char text[16384];
static uint32_t length;

void edgeq_put(const char *more) {
  while (*more != 0 && length < sizeof text) text[length++] = *more++;
}

void *edgeq_allocate(size_t size, size_t alignment) {
  size_t pages = (size + alignment) / 65536 + 1;
  size_t start = __builtin_wasm_memory_grow(0, pages);
  return start == SIZE_MAX ? NULL : (void *)(start * 65536);
}

uint64_t edgeq_nanoseconds(void) { return 0; }

EXPORT(edgeq_check_all) int edgeq_check_all(void) {
  length = 0;
  return edgeq_check();
}

EXPORT(edgeq_text) const char *edgeq_text(void) { return text; }
EXPORT(edgeq_text_length) uint32_t edgeq_text_length(void) { return length; }

/* The golden vectors, for the page: runs lie one after another. */
EXPORT(edgeq_runs) uint32_t edgeq_runs(void) { return edgeq_golden_runs; }

EXPORT(edgeq_input) const unsigned char *edgeq_input(uint32_t index) {
  return edgeq_golden_input_bytes[index];
}

EXPORT(edgeq_output) const unsigned char *edgeq_output(uint32_t index) {
  return edgeq_golden_output_bytes[index];
}
