#!/usr/bin/env bash
# tools/build_fuzz.sh [BUILD_DIR]: the fuzz targets, BUILD_DIR/fuzz_NAME (default build/fuzz), with clang, libFuzzer and the address and
# undefined-behaviour sanitizers. Longer by hand: build/fuzz/fuzz_template -max_total_time=3600 -timeout=10 CORPUS_DIR
set -euo pipefail
root=$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")
build=${1:-$root/build/fuzz}
cxx=$(command -v clang++-19 || command -v clang++) || { echo "clang++ was not found (Debian: clang-19 libclang-rt-19-dev)" >&2; exit 1; }

# libFuzzer's counters in the Rust code too (LLVM's SanitizerCoverage; a stable compiler has the pass, though not the sanitizers).
coverage="-Cpasses=sancov-module"
for option in level=4 inline-8bit-counters pc-table trace-compares; do
  coverage+=" -Cllvm-args=-sanitizer-coverage-$option"
done
export RUSTFLAGS=$coverage CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_DEBUG_ASSERTIONS=true

# Warnings are gcc's business here. A finding of the undefined-behaviour sanitizer ends the program, so that libFuzzer sees it.
cmake -S "$root" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_COMPILER="$cxx" \
  -DCMAKE_CXX_FLAGS="-Wno-error -fno-sanitize-recover=all" -DQUIRE_SANITIZE=fuzzer-no-link,address,undefined -DQUIRE_FUZZ=ON \
  -DQUIRE_CARGO_TARGET="$(rustc -vV | sed -n 's/^host: //p')" -DQUIRE_CUDA=OFF -DQUIRE_BENCHMARKS=OFF
nice cmake --build "$build" --target fuzz
