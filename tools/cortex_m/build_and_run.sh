#!/usr/bin/env bash
# Build a generated model for Cortex-M4, run its test under QEMU, and print the size of each section.
#
# In:  a folder with model.c, model.h, kernels.h and test.c, as deploy=tflite deploy.c_code=true writes them.
# Out: "0 of N images differ", exit code 0; 1 if one differs. Needs Debian's gcc-arm-none-eabi, libnewlib-arm-none-eabi
#      and qemu-system-arm.
#
#   tools/cortex_m/build_and_run.sh outputs/runs/DATE_TIME/c
set -euo pipefail
source=${1:?a folder with model.c and test.c}
here=$(dirname "$(realpath "$0")")
for program in arm-none-eabi-gcc qemu-system-arm; do
  command -v "$program" > /dev/null || { echo "$program is missing: apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi qemu-system-arm" >&2; exit 2; }
done
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
flags=(-mcpu=cortex-m4 -mthumb -mfloat-abi=soft -std=c99 -Os -Wall -Wextra -ffunction-sections -fdata-sections)
for file in "$source/model.c" "$source/test.c" "$here/startup.c"; do
  arm-none-eabi-gcc "${flags[@]}" -I"$source" -c "$file" -o "$build/$(basename "$file" .c).o"
done
arm-none-eabi-gcc "${flags[@]}" --specs=rdimon.specs -nostartfiles -Wl,--gc-sections -T"$here/mps2.ld" \
  "$build"/*.o -o "$build/test.elf"
echo "model.o: text is code, kernels included; rodata is weights; bss is the arena"
arm-none-eabi-size -A "$build/model.o" | awk '$2 > 0 && $1 ~ /^\.(text|rodata|data|bss)/ {split($1, part, "."); total[part[2]] += $2} END {for (name in total) print name, total[name], "bytes"}' | sort
qemu-system-arm -M mps2-an386 -nographic -semihosting-config enable=on,target=native -kernel "$build/test.elf"
