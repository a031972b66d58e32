/* A bare Cortex-M under a debugger or an emulator: vectors, start, and semihosting for output. */

#include "check.h"

#define ALIGNED(value, to) (((value) + (to) - 1) / (to) * (to))

extern unsigned char edgeq_data_start[], edgeq_data_end[], edgeq_data_load[];
extern unsigned char edgeq_bss_start[], edgeq_bss_end[];
extern unsigned char edgeq_heap_start[], edgeq_heap_end[], edgeq_stack_top[];

static int semihosting(int operation, const void *argument) {
  register int r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = argument;
  __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
  return r0;
}

void edgeq_put(const char *text) { semihosting(0x04, text); }

static void leave(int status) {
  const uint32_t reason[2] = {0x20026, (uint32_t)status}; /* the application exits */
  semihosting(0x20, reason);
  for (;;) {
  }
}

void *edgeq_allocate(size_t size, size_t alignment) {
  static uintptr_t next;
  uintptr_t start = ALIGNED(next == 0 ? (uintptr_t)edgeq_heap_start : next, alignment);
  if (start + size > (uintptr_t)edgeq_heap_end) return NULL;
  next = start + size;
  return (void *)start;
}

uint64_t edgeq_nanoseconds(void) { return 0; }

static void fault(void) {
  edgeq_put("The CPU raised a fault\n");
  leave(3);
}

static void reset(void) {
  *(volatile uint32_t *)0xe000ed88 |= 0xfu << 20; /* CPACR: the floating-point unit */
  __asm__ volatile("dsb\nisb");
  for (size_t i = 0; edgeq_data_start + i < edgeq_data_end; ++i)
    edgeq_data_start[i] = edgeq_data_load[i];
  for (unsigned char *p = edgeq_bss_start; p < edgeq_bss_end; ++p) *p = 0;
  leave(edgeq_check());
}

__attribute__((section(".vectors"), used)) static const void *const vectors[16] = {
    edgeq_stack_top, (const void *)reset, (const void *)fault, (const void *)fault,
    (const void *)fault, (const void *)fault, (const void *)fault};
