#!/usr/bin/env bash
# ./quire test [--label NAME]: set up, build, run every test this machine can run; the last line is "N passed, N failed, N skipped".
# Labels: unit property golden kernel sim server e2e fuzz install sanitize gpu. QUIRE_CUDA=off leaves the CUDA build and its tests out.
set -euo pipefail
export QUIRE_CUDA=${QUIRE_CUDA:-on}
# shellcheck disable=SC1091
source "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../quire" __source

label=
while [ $# -gt 0 ]; do
  case $1 in
    --label) label=${2:-}; [ -n "$label" ] || die "--label needs a name"; shift 2 ;;
    --label=*) label=${1#*=}; [ -n "$label" ] || die "--label needs a name"; shift ;;
    -h | --help) sed -n 2,3p "$root/tools/test.sh"; exit 0 ;;
    *) die "unknown option '$1' of test; --label NAME is the only one" ;;
  esac
done
labels="unit property golden kernel sim server e2e fuzz install sanitize gpu"
is_label() {
  local known
  for known in $labels; do [ "$label" != "$known" ] || return 0; done
  return 1
}
# Said before anything is installed or built.
check_cuda_setting
[ -z "$label" ] || is_label || die "no test has the label '$label'; labels are: $labels"
wants() { [ -z "$label" ] || [ "$label" = "$1" ]; }

lock_clone # until the last test has ended
say "quire: setting up"
ensure_package_lists
clang_packages=
# One version of clang: the fuzz targets mix its runtime with Rust's counters. Where it cannot be had, the runner says that they are skipped.
if wants fuzz && apt-cache show clang-19 >/dev/null 2>&1; then clang_packages="clang-19 libclang-rt-19-dev"; fi
# One version of the formatter: others format differently. Where it cannot be had, the format test says that it is skipped.
if apt-cache show clang-format-19 >/dev/null 2>&1; then clang_packages+=" clang-format-19"; fi
# shellcheck disable=SC2086
set_up $packages_test $clang_packages
ensure_sass_tools
ensure_venv
step "configure ($preset)" configure_with_tests
# By itself, so that its time is seen: at most 15 minutes on two cores without a compiler cache.
if cuda_wanted; then build_target quire_kernels_cuda_card; fi
build_target all

# Sanitizers on the parts that own memory and threads: what reads files and texts, keeps the books, runs the loop and serves; the thread
# sanitizer on what has threads. The CPU's kernels are read too; those for CUDA have the host shim's own checks. The Rust crate is the
# release build's: its memory comes from the sanitizer's allocator, its own accesses are not watched.
address_tests="base_test policy_test sample_test cache_unit_test cache_property_test request_test schedule_test schedule_beam_test
  engine_delivery_test engine_traffic_test sim_test unit_model_config unit_model_safetensors unit_execute
  server_generate_test server_service_test server_listener_test server_texts_test server_lifecycle_test
  text_chat_template_test text_detokenizer_test text_stop_matcher_test text_tokenizer_test
  cpu_rows_test cpu_math_test cpu_matmul_test cpu_attention_test disk_test"
thread_tests="engine_threads_test disk_test cpu_pool_test unit_execute server_service_test server_listener_test server_lifecycle_test"
# The rest of the server has no threads that these three have not: only where sanitizers are asked for by name.
if [ "$label" = sanitize ]; then thread_tests+=" server_generate_test server_texts_test server_tenant_limits_test server_host_memory_test"; fi
sanitizer_build() {
  forget_other_place "$root/build/$1"
  cmake --preset "$1" -S "$root" -DQUIRE_CARGO_DIR="$build/cargo" && nice cmake --build "$root/build/$1" -j "$jobs" --target ${*:2}
}
if wants sanitize; then
  # shellcheck disable=SC2086
  step "build with address and undefined sanitizers" sanitizer_build asan $address_tests
  # shellcheck disable=SC2086
  step "build with the thread sanitizer" sanitizer_build tsan $thread_tests
fi
if wants fuzz && command -v clang++-19 >/dev/null; then
  forget_other_place "$root/build/fuzz"
  step "build the fuzz targets" "$root/tools/build_fuzz.sh" "$root/build/fuzz"
fi

say "quire: testing"
exec "$root/.venv/bin/python" "$root/tools/run_tests.py" --build "$build" --jobs "$jobs" ${label:+--label "$label"}
