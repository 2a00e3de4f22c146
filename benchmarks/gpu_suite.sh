#!/usr/bin/env bash
# One command that proves and measures quire on a machine with a card: builds what it needs, runs the kernel and golden tests and
# compute-sanitizer, measures the card's ceilings, every kernel and the engine, beside the peers that this machine's Python has,
# and prints one table with the share of the roof and the ratio to the best peer. No network, no gRPC, no Rust, no Boost.
#
#   benchmarks/gpu_suite.sh [--only PART,..] [--prebuilt DIR] [--deps DIR] [--out DIR] [--shared DIR] [--python PROGRAM] [--build-only] [--dry-run]
#
# Parts, in order: tests and sanitize (at once), kernels attention engine-8b engine-0.6b engine-13b lists peer-engines. All of them
# take some 8 minutes; 9 are the limit, with a build (70 s on 16 cores) too, after which what is left is left out, and said to be. A part
# named by --only gets 3 minutes, the first of them with the build. A figure is the median of at least 5 rounds,
# but for 256 sequences at 1k (3) and offline lists (2; 5 if --only names the part and the build leaves it the time); the table says so in those rows.
#   --prebuilt DIR  a build directory, or a folder with its programs (they need glibc 2.36 and a driver): builds nothing
#   --deps DIR      what benchmarks/suite/dependencies.sh packed, for machines without Debian's header packages: fmt, spdlog,
#                   nlohmann-json, CLI11 and GoogleTest's sources. The build needs nothing else but a C++20 compiler, CMake, Ninja
#                   and a CUDA 13 toolkit.
#   --out DIR       suite.json, table.txt and logs; default build/gpu_suite
#   --shared DIR    goldens and their models; default ../shared or $QUIRE_SHARED; without it golden programs that read nothing else fail
#   --build-only    builds and stops
#   --dry-run       every line on the host shim in small shapes: no card, no figures; needs --prebuilt
set -euo pipefail
root=$(cd "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/.." && pwd)

say() { printf '%s\n' "$*" >&2; }
die() { say "gpu_suite: $*"; exit 2; }

only='' prebuilt='' deps='' out=$root/build/gpu_suite shared=${QUIRE_SHARED:-$root/../shared} python=python3 dry_run='' build_only=''
while [ $# -gt 0 ]; do
  case $1 in
    --only | --prebuilt | --deps | --out | --shared | --python)
      [ $# -gt 1 ] || die "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    --dry-run) dry_run=--dry-run; shift ;;
    --build-only) build_only=1; shift ;;
    -h | --help) sed -n '2,20s/^# \{0,1\}//p' "$0"; exit 0 ;;
    *) die "unknown option '$1' (--help lists them)" ;;
  esac
done
[ -z "$dry_run" ] || [ -n "$prebuilt" ] || die "--dry-run builds nothing: name a build directory with --prebuilt"
command -v "$python" >/dev/null || die "no $python on PATH: the suite's driver and the peers need Python 3.10 or newer"
started=$(date +%s)
mkdir -p "$out"

# ---- the build -----------------------------------------------------------------------------------------------------------------
programs="quire-offline quire_cuda_attention_bench quire_cuda_step_bench golden_device golden_device_noise golden_device_paths golden_device_sampling golden_device_tables golden_device_traffic golden_cascade golden_retention golden_device_calls golden_device_faults cuda_attention_card_test cuda_matmul_card_test cuda_device_test"

card_architecture() {
  local capability
  capability=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | head -n 1 | tr -d .) || true
  case $capability in
    '') die "nvidia-smi shows no card; --dry-run needs none" ;;
    9[0-9]) printf '%sa-real' "$capability" ;; # wgmma and tensor copies are of the a-variant alone
    *) printf '%s-real' "$capability" ;;
  esac
}

build_programs() {
  command -v cmake >/dev/null || die "no cmake on PATH"
  local architecture
  architecture=$(card_architecture)
  say "gpu_suite: building for $architecture (log: $out/build.log)"
  {
    cmake -S "$root" -B "$root/build/card" -G Ninja -DCMAKE_BUILD_TYPE=Release -DQUIRE_SERVER=OFF -DQUIRE_CUDA=ON \
      -DQUIRE_CUDA_ARCHITECTURES="$architecture" -DQUIRE_WARNINGS_ARE_ERRORS=OFF ${deps:+-DCMAKE_PREFIX_PATH="$(readlink -f "$deps")"} &&
      timeout 170 cmake --build "$root/build/card" -j "$(nproc)" --target $programs
  } >"$out/build.log" 2>&1 || { tail -n 30 "$out/build.log" >&2; die "the build failed"; }
  prebuilt=$root/build/card
  say "gpu_suite: built in $(($(date +%s) - started)) s"
}

[ -n "$prebuilt" ] || build_programs
[ -z "$build_only" ] || exit 0
[ -d "$prebuilt" ] || die "--prebuilt $prebuilt: no such folder"
exec "$python" "$root/benchmarks/suite/run.py" --binaries "$prebuilt" --out "$out" --shared "$shared" --started "$started" \
  ${only:+--only "$only"} $dry_run
