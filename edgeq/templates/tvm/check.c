/* Runs all golden inputs and compares every byte of every output. Built with EDGEQ_TAPS, it also
   compares the digest of every quantized tensor, right after the kernel that writes it. */

#include "check.h"
#include "edgeq_model.h"

static uint32_t run;
static uint64_t compared, errors;

static void put_unsigned(uint64_t value) {
  char text[21], *at = text + sizeof text - 1;
  *at = 0;
  do *--at = (char)('0' + value % 10);
  while (value /= 10);
  edgeq_put(at);
}

/* Little-endian, of 1, 2, 4 or 8 bytes. */
static uint64_t bits_of(const unsigned char *data, uint32_t size) {
  uint64_t bits = 0;
  for (uint32_t i = size; i-- > 0;) bits = bits << 8 | data[i];
  return bits;
}

static void put_bits(uint64_t bits, uint32_t size) {
  char text[19] = "0x", *at = text + 2;
  for (uint32_t i = 2 * size; i-- > 0;) *at++ = "0123456789abcdef"[bits >> (4 * i) & 15];
  *at = 0;
  edgeq_put(text);
}

/* Nine digits, for people; the bits say exactly what it is. */
static void put_real(double real) {
  int exponent = 0;
  if (real != real || real - real != 0) {
    edgeq_put(real != real ? "nan" : real > 0 ? "inf" : "-inf");
    return;
  }
  if (real < 0) edgeq_put("-");
  if (real < 0) real = -real;
  for (; real >= 10; real /= 10) ++exponent;
  for (; real > 0 && real < 1; real *= 10) --exponent;
  uint64_t digits = (uint64_t)(real * 1e8 + 0.5);
  put_unsigned(digits / 100000000);
  edgeq_put(".");
  for (uint64_t place = 10000000; place > 0; place /= 10) put_unsigned(digits / place % 10);
  edgeq_put(exponent < 0 ? "e-" : "e");
  put_unsigned((uint64_t)(exponent < 0 ? -exponent : exponent));
}

static void put_element(const struct edgeq_tensor *tensor, const unsigned char *data) {
  uint64_t bits = bits_of(data, tensor->size);
  if (tensor->type[0] == 'f') {
    float narrow = 0;
    double wide = 0;
    if (tensor->size == 4) memcpy(&narrow, data, 4);
    if (tensor->size == 8) memcpy(&wide, data, 8);
    put_real(tensor->size == 4 ? (double)narrow : wide);
    edgeq_put(" (");
    put_bits(bits, tensor->size);
    edgeq_put(")");
    return;
  }
  uint64_t sign = (uint64_t)1 << (8 * tensor->size - 1);
  if (tensor->type[0] == 'i' && (bits & sign) != 0) {
    edgeq_put("-");
    bits = (sign << 1) - bits;
  }
  put_unsigned(bits);
}

static void put_index(const struct edgeq_tensor *tensor, uint32_t flat) {
  uint32_t step = tensor->elements;
  edgeq_put("[");
  for (uint32_t axis = 0; axis < tensor->rank; ++axis) {
    step /= tensor->shape[axis];
    if (axis > 0) edgeq_put(", ");
    put_unsigned(flat / step);
    flat %= step;
  }
  edgeq_put("]");
}

static void put_place(const char *kind, const struct edgeq_tensor *tensor) {
  edgeq_put("First difference: ");
  edgeq_put(kind);
  edgeq_put(" '");
  edgeq_put(tensor->name);
  edgeq_put("' ");
  edgeq_put(tensor->type);
  edgeq_put(", feed ");
  put_unsigned(run);
}

static void compare(const struct edgeq_tensor *tensor, const unsigned char *expected,
                    const unsigned char *found) {
  for (uint32_t i = 0; i < tensor->elements; ++i) {
    const unsigned char *want = expected + (size_t)i * tensor->size;
    const unsigned char *got = found + (size_t)i * tensor->size;
    ++compared;
    if (memcmp(want, got, tensor->size) == 0) continue;
    if (errors++ > 0) continue;
    put_place("output", tensor);
    edgeq_put(", index ");
    put_index(tensor, i);
    edgeq_put(": expected ");
    put_element(tensor, want);
    edgeq_put(", found ");
    put_element(tensor, got);
    edgeq_put("\n");
  }
}

#ifdef EDGEQ_TAPS
/* Hashes elements in the order of ONNX, however they lie. */
static void hash_elements(struct edgeq_sha256 *hash, const struct edgeq_tensor *tensor,
                          const unsigned char *data, uint32_t axis) {
  if (tensor->strides == NULL) {
    edgeq_sha256_add(hash, data, (size_t)tensor->elements * tensor->size);
    return;
  }
  if (axis == tensor->rank) {
    edgeq_sha256_add(hash, data, tensor->size);
    return;
  }
  for (uint32_t i = 0; i < tensor->shape[axis]; ++i) {
    size_t step = (size_t)i * tensor->strides[axis] * tensor->size;
    hash_elements(hash, tensor, data + step, axis + 1);
  }
}

void edgeq_tap(int index, const void *data);

void edgeq_tap(int index, const void *data) {
  const struct edgeq_tensor *tensor = &edgeq_tap_tensors[index];
  const unsigned char *want = edgeq_tap_digests + ((size_t)run * edgeq_taps + (size_t)index) * 32;
  unsigned char got[32];
  struct edgeq_sha256 hash;
  edgeq_sha256_start(&hash);
  edgeq_sha256_add(&hash, tensor->type, strlen(tensor->type));
  hash_elements(&hash, tensor, data, 0);
  edgeq_sha256_end(&hash, got);
  compared += tensor->elements;
  if (memcmp(want, got, 32) == 0) return;
  if (errors++ > 0) return;
  put_place("tap", tensor);
  edgeq_put(", written by ");
  edgeq_put(tensor->writer);
  edgeq_put("\n");
}
#endif

int edgeq_check(void) {
  const void *inputs[EDGEQ_MODEL_INPUTS + 1] = {0};
  void *outputs[EDGEQ_MODEL_OUTPUTS + 1] = {0};
  void *workspace =
      edgeq_allocate(EDGEQ_MODEL_WORKSPACE_SIZE, EDGEQ_MODEL_WORKSPACE_ALIGNMENT);
  uint64_t fastest = UINT64_MAX;
  int failed = workspace == NULL;
  for (int i = 0; i < EDGEQ_MODEL_INPUTS; ++i) {
    const struct edgeq_tensor *tensor = &edgeq_golden_inputs[i];
    inputs[i] = edgeq_allocate((size_t)tensor->elements * tensor->size, tensor->size);
    failed |= inputs[i] == NULL;
  }
  for (int i = 0; i < EDGEQ_MODEL_OUTPUTS; ++i) {
    const struct edgeq_tensor *tensor = &edgeq_golden_outputs[i];
    outputs[i] = edgeq_allocate((size_t)tensor->elements * tensor->size, tensor->size);
    failed |= outputs[i] == NULL;
  }
  if (failed) {
    edgeq_put("Not enough memory\n");
    return 1;
  }
  compared = errors = 0;
  for (run = 0; run < edgeq_golden_runs; ++run) {
    for (int i = 0; i < EDGEQ_MODEL_INPUTS; ++i) {
      size_t size = (size_t)edgeq_golden_inputs[i].elements * edgeq_golden_inputs[i].size;
      memcpy((void *)inputs[i], edgeq_golden_input_bytes[i] + run * size, size);
    }
    /* An output that nobody writes must not pass, and nothing may lean on what was left behind. */
    for (int i = 0; i < EDGEQ_MODEL_OUTPUTS; ++i) {
      size_t size = (size_t)edgeq_golden_outputs[i].elements * edgeq_golden_outputs[i].size;
      const unsigned char *expected = edgeq_golden_output_bytes[i] + run * size;
      for (size_t j = 0; j < size; ++j) ((unsigned char *)outputs[i])[j] = (unsigned char)~expected[j];
    }
    memset(workspace, 0xa5, EDGEQ_MODEL_WORKSPACE_SIZE);
    uint64_t start = edgeq_nanoseconds();
    int status = edgeq_model_run(inputs, outputs, workspace);
    uint64_t passed = edgeq_nanoseconds() - start;
    if (passed < fastest) fastest = passed;
    if (status != EDGEQ_MODEL_OK) {
      edgeq_put("edgeq_model_run returned ");
      put_unsigned((uint64_t)status);
      edgeq_put("\n");
      return 1;
    }
    for (int i = 0; i < EDGEQ_MODEL_OUTPUTS; ++i) {
      size_t size = (size_t)edgeq_golden_outputs[i].elements * edgeq_golden_outputs[i].size;
      compare(&edgeq_golden_outputs[i], edgeq_golden_output_bytes[i] + run * size, outputs[i]);
    }
  }
  edgeq_put("Errors: ");
  put_unsigned(errors);
  edgeq_put(" out of ");
  put_unsigned(compared);
  edgeq_put(" elements, in ");
  put_unsigned(edgeq_golden_runs);
  edgeq_put(" runs\n");
  if (compared == 0) edgeq_put("Nothing was compared\n");
#ifndef EDGEQ_TAPS
  if (fastest != UINT64_MAX && fastest > 0) {
    edgeq_put("Fastest run: ");
    put_unsigned(fastest);
    edgeq_put(" nanoseconds\n");
  }
#endif
  return errors != 0 || compared == 0;
}
