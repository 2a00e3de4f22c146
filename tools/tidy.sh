#!/usr/bin/env bash
# tools/tidy.sh [FILE...]: clang-tidy with the checks of .clang-tidy over the host sources, or over the files named; exit code 1 on any
# finding. Needs a configured build (its compile_commands.json; QUIRE_PRESET names it, release by default) and clang-tidy-19 (Debian:
# clang-tidy-19). Device code is left out: clang 19 does not know CUDA 13's headers; so is the one file with OpenMP, whose header is gcc's.
# A file that cannot be compiled is a finding too. A whole run takes 20 to 40 minutes on two cores.
set -euo pipefail
cd "$(dirname "$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")")"
build=build/${QUIRE_PRESET:-release}
[ -f "$build/compile_commands.json" ] || { echo "tidy: no $build/compile_commands.json; run ./quire setup first" >&2; exit 2; }
tidy=$(command -v clang-tidy-19 || command -v clang-tidy) || { echo "tidy: clang-tidy was not found (Debian: clang-tidy-19)" >&2; exit 2; }
files=("$@")
[ $# -gt 0 ] || mapfile -t files < <(git ls-files 'src/*.cc' 'server/*.cc' 'kernels/cpu/*.cc' 'kernels/reference/*.cc' 'benchmarks/*.cc' ':!benchmarks/cpu/matmul_bench.cc')
# Only what this build compiles: device sources need a CUDA build.
compiled=()
for file in "${files[@]}"; do grep -qF "/$file\"" "$build/compile_commands.json" && compiled+=("$file"); done
[ ${#compiled[@]} -gt 0 ] || { echo "tidy: none of these files is compiled in $build" >&2; exit 2; }
# A header's finding comes once for each file that includes it: each is shown once.
output=$(mktemp)
trap 'rm -f "$output"' EXIT
ended=0
printf '%s\0' "${compiled[@]}" | xargs -0 -n 1 -P "$(nproc)" "$tidy" -p "$build" --quiet \
  --extra-arg=-Wno-unknown-warning-option --extra-arg=-Wno-deprecated-declarations >"$output" 2>&1 || ended=$?
findings=$(grep -E '(warning|error): ' "$output" | sed "s#^$PWD/##" | sort -u || true)
if [ -z "$findings" ]; then
  [ "$ended" = 0 ] || { tail -n 5 "$output" >&2; echo "tidy: $tidy ended with an error (xargs: $ended)" >&2; exit 2; }
  echo "tidy: ${#compiled[@]} files, no finding"
  exit 0
fi
printf '%s\n' "$findings"
echo "tidy: ${#compiled[@]} files, $(wc -l <<<"$findings") findings"
exit 1
