#!/bin/sh
# run.sh PROGRAM CORPUS: one libFuzzer target for QUIRE_FUZZ_SECONDS (60), from its committed corpus and what it found before (CORPUS).
# Models' files, tokenizers and requests have all of that time, the others a third.
set -eu
program=$1 corpus=$2 name=$(basename "$1") seconds=${QUIRE_FUZZ_SECONDS:-60}
case $name in fuzz_cuts | fuzz_template | fuzz_text) seconds=$((seconds / 3)) ;; esac
if [ ! -x "$program" ]; then
  echo "$name is not built: clang++-19 is wanted (tools/build_fuzz.sh takes another by hand)"
  exit 77
fi
mkdir -p "$corpus"
# A crash by another code than the one for a test that cannot run here, which is libFuzzer's own.
exec "$program" -max_total_time=$((seconds > 1 ? seconds : 1)) -timeout=10 -rss_limit_mb=2048 -error_exitcode=1 "$corpus"
