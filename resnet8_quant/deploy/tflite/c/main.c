/* Reads images on standard input and writes outputs, codes of one byte each, as long as there are some. */
#include <stdio.h>

#include "model.h"

int main(void) {
  int8_t input[MODEL_INPUT_BYTES], output[MODEL_OUTPUT_BYTES];
  while (fread(input, MODEL_INPUT_BYTES, 1, stdin) == 1) {
    model_run(input, output);
    fwrite(output, MODEL_OUTPUT_BYTES, 1, stdout);
  }
  return 0;
}
