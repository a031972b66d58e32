/* The model as a WebAssembly module without imports: edgeq_model.js calls it. */

#include "edgeq_model.h"

#define EXPORT(name) __attribute__((export_name(#name)))

extern unsigned char __heap_base[];

/* Returns memory that is never given back, or 0. */
EXPORT(edgeq_memory) uint32_t edgeq_memory(uint32_t size) {
  static uint32_t next;
  uint32_t have = (uint32_t)__builtin_wasm_memory_size(0) * 65536;
  uint32_t start = ((next == 0 ? (uint32_t)__heap_base : next) + 63) / 64 * 64;
  if (start + size > have &&
      __builtin_wasm_memory_grow(0, (start + size - have + 65535) / 65536) == UINT32_MAX) {
    return 0;
  }
  next = start + size;
  return start;
}

EXPORT(edgeq_run) int edgeq_run(const void *const *inputs, void *const *outputs, void *workspace) {
  return edgeq_model_run(inputs, outputs, workspace);
}
