/* The model as a module without imports: memory for its inputs, outputs and workspace. */

#include "edgeq_model.h"

#define EXPORT(name) __attribute__((export_name(#name)))

extern unsigned char __heap_base[];

static uint32_t next;

EXPORT(edgeq_allocate) uint32_t edgeq_allocate(uint32_t size) {
  if (next == 0) next = (uint32_t)__heap_base;
  uint32_t start = (next + 63) / 64 * 64, have = (uint32_t)__builtin_wasm_memory_size(0) * 65536;
  next = start + size;
  if (next > have) {
    uint32_t pages = (next - have + 65535) / 65536;
    if (__builtin_wasm_memory_grow(0, pages) == UINT32_MAX) return 0;
  }
  return start;
}

EXPORT(edgeq_run) int edgeq_run(const void *const *inputs, void *const *outputs, void *workspace) {
  return edgeq_model_run(inputs, outputs, workspace);
}
