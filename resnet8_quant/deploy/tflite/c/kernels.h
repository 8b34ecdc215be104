/* The integer operators of TensorFlow Lite's reference kernels in C99: no float, no heap, no library but <stdint.h>.
 *
 * Activations are int8 in NHWC order for one image; weights are int8 as TensorFlow Lite stores them, or two int4 codes
 * in a byte, the first one in the low half. reference.py says the same in NumPy, and names the kernels.
 */
#ifndef RESNET8_QUANT_KERNELS_H
#define RESNET8_QUANT_KERNELS_H

#include <stdint.h>

/* A scale as multiplier * 2^(shift - 31). */
typedef struct {
  int32_t multiplier;
  int32_t shift;
} rq_scale;

typedef struct {
  int32_t height, width, channels;
} rq_shape;

typedef struct {
  int32_t stride_h, stride_w, pad_top, pad_left;
} rq_window;

typedef struct {
  int32_t zero_point, low, high; /* of the output: added, then clamped */
} rq_output;

static inline int32_t rq_high_mul(int32_t a, int32_t b) {
  if (a == b && a == INT32_MIN) return INT32_MAX;
  const int64_t product = (int64_t)a * b;
  const int64_t nudge = product >= 0 ? (1 << 30) : (1 - (1 << 30));
  return (int32_t)((product + nudge) / ((int64_t)1 << 31));
}

static inline int32_t rq_divide_by_pot(int32_t x, int32_t exponent) {
  const int32_t mask = (int32_t)(((int64_t)1 << exponent) - 1);
  const int32_t remainder = x & mask;
  const int32_t threshold = (mask >> 1) + (x < 0 ? 1 : 0);
  return (x >> exponent) + (remainder > threshold ? 1 : 0);
}

static inline int32_t rq_multiply(int32_t x, rq_scale scale) {
  const int32_t left = scale.shift > 0 ? scale.shift : 0;
  const int32_t right = scale.shift > 0 ? 0 : -scale.shift;
  return rq_divide_by_pot(rq_high_mul((int32_t)((uint32_t)x << left), scale.multiplier), right);
}

static inline int8_t rq_store(int32_t x, rq_output out) {
  x += out.zero_point;
  return (int8_t)(x < out.low ? out.low : x > out.high ? out.high : x);
}

/* Sum of (values[i] - zero) * weights[first + i]. An int4 code of two's complement is (bits ^ 8) - 8. */
static inline int32_t rq_dot(const int8_t *values, int32_t zero, const int8_t *weights, int32_t first, int32_t count,
                             int32_t packed) {
  int32_t sum = 0, i = 0;
  if (!packed) {
    for (; i < count; i++) sum += (values[i] - zero) * weights[first + i];
    return sum;
  }
  if (first & 1) sum += (values[i++] - zero) * (((uint8_t)weights[first >> 1] >> 4 ^ 8) - 8);
  const uint8_t *pairs = (const uint8_t *)weights + ((first + 1) >> 1);
  for (; i + 1 < count; i += 2, pairs++) {
    sum += (values[i] - zero) * (((*pairs & 15) ^ 8) - 8) + (values[i + 1] - zero) * ((*pairs >> 4 ^ 8) - 8);
  }
  return i < count ? sum + (values[i] - zero) * (((*pairs & 15) ^ 8) - 8) : sum;
}

/* The channels of a pixel; 0 outside the image. */
static inline const int8_t *rq_pixel(const int8_t *in, rq_shape shape, int32_t row, int32_t column) {
  if (row < 0 || row >= shape.height || column < 0 || column >= shape.width) return 0;
  return in + (row * shape.width + column) * shape.channels;
}

/* weights [outputs][kernel_h][kernel_w][depth]; depth: the input's channels, or those of a group */
static inline void rq_conv(const int8_t *in, rq_shape is, int32_t in_zero, const int8_t *weights, int32_t packed,
                           int32_t kernel_h, int32_t kernel_w, int32_t depth, const int32_t *bias,
                           const rq_scale *scales, rq_window window, int8_t *out, rq_shape os, rq_output to) {
  const int32_t outputs_of_group = os.channels / (is.channels / depth);
  for (int32_t y = 0; y < os.height; y++) {
    for (int32_t x = 0; x < os.width; x++) {
      for (int32_t o = 0; o < os.channels; o++) {
        int32_t sum = bias ? bias[o] : 0;
        for (int32_t i = 0; i < kernel_h; i++) {
          for (int32_t j = 0; j < kernel_w; j++) {
            const int8_t *pixel = rq_pixel(in, is, y * window.stride_h + i - window.pad_top,
                                           x * window.stride_w + j - window.pad_left);
            if (!pixel) continue;
            pixel += o / outputs_of_group * depth;
            const int32_t first = ((o * kernel_h + i) * kernel_w + j) * depth;
            sum += rq_dot(pixel, in_zero, weights, first, depth, packed);
          }
        }
        *out++ = rq_store(rq_multiply(sum, scales[o]), to);
      }
    }
  }
}

/* weights [kernel_h][kernel_w][channels * multiplier] */
static inline void rq_depthwise(const int8_t *in, rq_shape is, int32_t in_zero, const int8_t *weights, int32_t kernel_h,
                                int32_t kernel_w, int32_t multiplier, const int32_t *bias, const rq_scale *scales,
                                rq_window window, int8_t *out, rq_shape os, rq_output to) {
  for (int32_t y = 0; y < os.height; y++) {
    for (int32_t x = 0; x < os.width; x++) {
      for (int32_t o = 0; o < os.channels; o++) {
        int32_t sum = bias ? bias[o] : 0;
        for (int32_t i = 0; i < kernel_h; i++) {
          for (int32_t j = 0; j < kernel_w; j++) {
            const int8_t *pixel = rq_pixel(in, is, y * window.stride_h + i - window.pad_top,
                                           x * window.stride_w + j - window.pad_left);
            if (!pixel) continue;
            const int32_t value = pixel[o / multiplier] - in_zero;
            sum += value * weights[(i * kernel_w + j) * os.channels + o];
          }
        }
        *out++ = rq_store(rq_multiply(sum, scales[o]), to);
      }
    }
  }
}

/* weights [outputs][inputs]; per_channel: a scale for each output, else one */
static inline void rq_fully_connected(const int8_t *in, int32_t inputs, int32_t in_zero, const int8_t *weights,
                                      int32_t packed, const int32_t *bias, const rq_scale *scales, int32_t per_channel,
                                      int8_t *out, int32_t outputs, rq_output to) {
  for (int32_t o = 0; o < outputs; o++) {
    const int32_t sum = (bias ? bias[o] : 0) + rq_dot(in, in_zero, weights, o * inputs, inputs, packed);
    out[o] = rq_store(rq_multiply(sum, scales[per_channel ? o : 0]), to);
  }
}

/* Sizes of 1 in an input of rq_add or rq_mul are repeated: offset of the value that belongs to y, x, c of the output. */
static inline int32_t rq_repeated(rq_shape shape, int32_t y, int32_t x, int32_t c) {
  const int32_t row = shape.height == 1 ? 0 : y, column = shape.width == 1 ? 0 : x;
  return (row * shape.width + column) * shape.channels + (shape.channels == 1 ? 0 : c);
}

static inline void rq_add(const int8_t *a, int32_t a_zero, rq_shape as, rq_scale a_scale, const int8_t *b,
                          int32_t b_zero, rq_shape bs, rq_scale b_scale, rq_scale scale, int8_t *out, rq_shape os,
                          rq_output to) {
  for (int32_t y = 0; y < os.height; y++) {
    for (int32_t x = 0; x < os.width; x++) {
      for (int32_t c = 0; c < os.channels; c++) {
        const int32_t first = (a[rq_repeated(as, y, x, c)] - a_zero) * (1 << 20);
        const int32_t second = (b[rq_repeated(bs, y, x, c)] - b_zero) * (1 << 20);
        *out++ = rq_store(rq_multiply(rq_multiply(first, a_scale) + rq_multiply(second, b_scale), scale), to);
      }
    }
  }
}

static inline void rq_mul(const int8_t *a, int32_t a_zero, rq_shape as, const int8_t *b, int32_t b_zero, rq_shape bs,
                          rq_scale scale, int8_t *out, rq_shape os, rq_output to) {
  for (int32_t y = 0; y < os.height; y++) {
    for (int32_t x = 0; x < os.width; x++) {
      for (int32_t c = 0; c < os.channels; c++) {
        const int32_t first = a[rq_repeated(as, y, x, c)] - a_zero, second = b[rq_repeated(bs, y, x, c)] - b_zero;
        *out++ = rq_store(rq_multiply(first * second, scale), to);
      }
    }
  }
}

/* average: the mean of the codes; else their maximum. to.zero_point is 0: both keep the input's scale. */
static inline void rq_pool(const int8_t *in, rq_shape is, int32_t kernel_h, int32_t kernel_w, rq_window window,
                           int32_t average, int8_t *out, rq_shape os, rq_output to) {
  for (int32_t y = 0; y < os.height; y++) {
    for (int32_t x = 0; x < os.width; x++) {
      for (int32_t c = 0; c < os.channels; c++) {
        int32_t sum = 0, count = 0, largest = -128;
        for (int32_t i = 0; i < kernel_h; i++) {
          for (int32_t j = 0; j < kernel_w; j++) {
            const int8_t *pixel = rq_pixel(in, is, y * window.stride_h + i - window.pad_top,
                                           x * window.stride_w + j - window.pad_left);
            if (!pixel) continue;
            const int32_t value = pixel[c];
            sum += value;
            count++;
            if (value > largest) largest = value;
          }
        }
        const int32_t mean = sum > 0 ? (sum + count / 2) / count : -((-sum + count / 2) / count);
        *out++ = rq_store(average ? mean : largest, to);
      }
    }
  }
}

/* over height and width; the count is in the scale already */
static inline void rq_mean(const int8_t *in, rq_shape is, int32_t in_zero, rq_scale scale, int8_t *out, rq_output to) {
  for (int32_t c = 0; c < is.channels; c++) {
    int32_t sum = 0;
    for (int32_t i = 0; i < is.height * is.width; i++) sum += in[i * is.channels + c] - in_zero;
    out[c] = rq_store(rq_multiply(sum, scale), to);
  }
}

/* top, left, front: pixels and channels before those of the input */
static inline void rq_pad(const int8_t *in, rq_shape is, int32_t top, int32_t left, int32_t front, int8_t *out,
                          rq_shape os, int32_t zero_point) {
  for (int32_t y = 0; y < os.height; y++) {
    for (int32_t x = 0; x < os.width; x++) {
      const int8_t *pixel = rq_pixel(in, is, y - top, x - left);
      for (int32_t c = 0; c < os.channels; c++) {
        *out++ = pixel && c >= front && c < front + is.channels ? pixel[c - front] : (int8_t)zero_point;
      }
    }
  }
}

static inline void rq_requantize(const int8_t *in, int32_t in_zero, rq_scale scale, int8_t *out, int32_t count,
                                 rq_output to) {
  for (int32_t i = 0; i < count; i++) out[i] = rq_store(rq_multiply(in[i] - in_zero, scale), to);
}

/* one input of a concatenation: rows of ``inner`` values go to ``offset`` in rows of ``outer`` values */
static inline void rq_concatenate(const int8_t *in, int32_t rows, int32_t inner, int8_t *out, int32_t outer,
                                  int32_t offset) {
  for (int32_t r = 0; r < rows; r++) {
    for (int32_t i = 0; i < inner; i++) out[r * outer + offset + i] = in[r * inner + i];
  }
}

/* exp of a number <= 0 with so many integer bits; the result has none */
static inline int32_t rq_exp_on_negative(int32_t x, int32_t integer_bits) {
  static const int32_t factors[7] = {1672461947, 1302514674, 790015084, 290630308, 39332535, 720401, 242};
  if (x == 0) return INT32_MAX;
  const int32_t quarter_bits = 29 - integer_bits, quarter = 1 << quarter_bits;
  const int32_t masked = (x & (quarter - 1)) - quarter;
  const int32_t y = (int32_t)((uint32_t)masked << integer_bits) + (1 << 28);
  const int32_t y2 = rq_high_mul(y, y), y3 = rq_high_mul(y2, y), y4 = rq_high_mul(y2, y2);
  const int32_t inner = rq_divide_by_pot(rq_high_mul(rq_divide_by_pot(y4, 2) + y3, 715827883) + y2, 1);
  int32_t result = 1895147668 + rq_high_mul(y + inner, 1895147668);
  const int32_t remainder = masked - x;
  for (int32_t bit = 0; bit < integer_bits + 2; bit++) {
    if (remainder & (1 << (quarter_bits + bit))) result = rq_high_mul(result, factors[bit]);
  }
  return result;
}

static inline int32_t rq_shift_saturated(int32_t x, int32_t bits) {
  const int64_t wide = (int64_t)x * ((int64_t)1 << bits);
  return wide > INT32_MAX ? INT32_MAX : wide < INT32_MIN ? INT32_MIN : (int32_t)wide;
}

/* 1 / (1 + x) for x in [0, 1) without integer bits */
static inline int32_t rq_one_over_one_plus(int32_t x) {
  const int64_t total = (int64_t)x + INT32_MAX;
  const int32_t half = (int32_t)((total + (total >= 0 ? 1 : -1)) / 2);
  int32_t y = 1515870810 + rq_high_mul(half, -1010580540);
  for (int32_t i = 0; i < 3; i++) {
    y += rq_shift_saturated(rq_high_mul(y, (1 << 29) - rq_high_mul(half, y)), 2);
  }
  return rq_shift_saturated(y, 1);
}

/* 1 / (1 + exp(-x)); at a distance of ``radius`` from 0 and beyond it is 0 or 1 */
static inline void rq_logistic(const int8_t *in, int32_t in_zero, rq_scale scale, int32_t radius, int8_t *out,
                               int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    const int32_t x = in[i] - in_zero;
    if (x <= -radius || x >= radius) {
      out[i] = x > 0 ? 127 : -128;
      continue;
    }
    const int32_t scaled = rq_multiply(x, scale);
    const int32_t positive = rq_one_over_one_plus(rq_exp_on_negative(scaled > 0 ? -scaled : scaled, 4));
    const int32_t result = scaled > 0 ? positive : scaled < 0 ? INT32_MAX - positive : 1 << 30;
    const int32_t value = rq_divide_by_pot(result, 31 - 8) - 128;
    out[i] = (int8_t)(value > 127 ? 127 : value);
  }
}

static inline int32_t rq_high_mul_16(int32_t a, int32_t b, int32_t rounds) {
  const int32_t product = a * b;
  const int32_t nudge = !rounds ? 0 : product >= 0 ? (1 << 14) : (1 - (1 << 14));
  const int32_t high = (product + nudge) / (1 << 15);
  return high > INT16_MAX ? INT16_MAX : high;
}

static inline int32_t rq_shift_16(int32_t x, int32_t bits) {
  const int64_t wide = (int64_t)x * ((int64_t)1 << bits);
  return wide > INT16_MAX ? INT16_MAX : wide < INT16_MIN ? INT16_MIN : (int32_t)wide;
}

/* x * relu6(x + 3) / 6: the first factor on the output's scale, the second one between 0 and 2^15 */
static inline void rq_hard_swish(const int8_t *in, int32_t in_zero, rq_scale output, rq_scale relu, int8_t *out,
                                 int32_t count, rq_output to) {
  for (int32_t i = 0; i < count; i++) {
    const int32_t fine = (in[i] - in_zero) * (1 << 7);
    const int32_t value = rq_high_mul_16(fine, output.multiplier, 1);
    int32_t gate = relu.shift > 0 ? rq_shift_16(fine, relu.shift - 1) : fine;
    gate = rq_high_mul_16(gate, relu.multiplier, 1);
    gate = relu.shift > 0 ? rq_shift_16(gate, 1) : rq_divide_by_pot(gate, -relu.shift);
    const int32_t product = rq_high_mul_16((gate + (1 << 15)) >> 1, value, 0);
    out[i] = rq_store(rq_divide_by_pot(product, -output.shift), to);
  }
}

/* rows of logits; differences of more than ``smallest`` to the largest are 0 */
static inline void rq_softmax(const int8_t *in, int32_t rows, int32_t count, rq_scale scale, int32_t smallest,
                              int8_t *out) {
  for (int32_t r = 0; r < rows; r++, in += count, out += count) {
    int32_t largest = -128, sum = 0;
    for (int32_t i = 0; i < count; i++) largest = in[i] > largest ? in[i] : largest;
    for (int32_t i = 0; i < count; i++) {
      const int32_t difference = in[i] - largest;
      if (difference >= smallest) sum += rq_divide_by_pot(rq_exp_on_negative(rq_multiply(difference, scale), 5), 12);
    }
    int32_t leading = 0;
    while (leading < 32 && !(((uint32_t)sum << leading) & 0x80000000u)) leading++;
    const int32_t reciprocal = rq_one_over_one_plus((int32_t)(((uint32_t)sum << leading) - 0x80000000u));
    for (int32_t i = 0; i < count; i++) {
      const int32_t difference = in[i] - largest;
      if (difference < smallest) {
        out[i] = -128;
        continue;
      }
      const int32_t exponential = rq_exp_on_negative(rq_multiply(difference, scale), 5);
      const int32_t value = rq_divide_by_pot(rq_high_mul(reciprocal, exponential), 12 - leading + 31 - 8) - 128;
      out[i] = (int8_t)(value > 127 ? 127 : value < -128 ? -128 : value);
    }
  }
}

#endif
