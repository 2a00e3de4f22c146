#!/usr/bin/env bash
# Packs what the engine-only build needs of third parties into one folder that CMake finds by CMAKE_PREFIX_PATH, from this
# machine's packages (Debian: libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev libgtest-dev): headers, GoogleTest's
# sources, a license each and small package files. About 6 MB; nothing compiled, so any compiler may build with it.
#   benchmarks/suite/dependencies.sh DIR
set -euo pipefail
target=${1:?"usage: dependencies.sh DIR"}
gtest=${GTEST_SOURCE:-/usr/src/googletest/googletest}

for folder in /usr/include/{fmt,spdlog,nlohmann,CLI} "$gtest/src"; do
  [ -d "$folder" ] || { echo "dependencies.sh: $folder is missing: install its package" >&2; exit 1; }
done
mkdir -p "$target"/{include,lib/cmake,share/licenses,src/googletest}
cp -rL /usr/include/{fmt,spdlog,nlohmann,CLI} "$target/include/"
cp -r "$gtest"/{include,src} "$target/src/googletest/"
for package in libfmt-dev libspdlog-dev nlohmann-json3-dev libcli11-dev libgtest-dev; do
  cp -L "/usr/share/doc/$package/copyright" "$target/share/licenses/$package" 2>/dev/null || true
done

# package NAME TARGET...: a package file whose targets are headers alone
package() {
  local name=$1 folder=$target/lib/cmake/$1; shift
  mkdir -p "$folder"
  {
    echo 'get_filename_component(prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)'
    for t in "$@"; do
      echo "if(NOT TARGET $t)"
      echo "  add_library($t INTERFACE IMPORTED GLOBAL)"
      echo "  target_include_directories($t SYSTEM INTERFACE \${prefix}/include)"
      echo "endif()"
    done
  } >"$folder/${name}Config.cmake"
}
package fmt fmt::fmt-header-only
echo 'set_property(TARGET fmt::fmt-header-only PROPERTY INTERFACE_COMPILE_DEFINITIONS FMT_HEADER_ONLY=1)' >>"$target/lib/cmake/fmt/fmtConfig.cmake"
package spdlog spdlog::spdlog_header_only
echo 'set_property(TARGET spdlog::spdlog_header_only PROPERTY INTERFACE_COMPILE_DEFINITIONS "SPDLOG_FMT_EXTERNAL;FMT_HEADER_ONLY=1")' \
  >>"$target/lib/cmake/spdlog/spdlogConfig.cmake"
package nlohmann_json nlohmann_json::nlohmann_json
package CLI11 CLI11::CLI11
mkdir -p "$target/lib/cmake/GTest"
cat >"$target/lib/cmake/GTest/GTestConfig.cmake" <<'CMAKE'
get_filename_component(prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)
if(NOT TARGET GTest::gtest)
  find_package(Threads REQUIRED)
  add_library(packed_gtest STATIC ${prefix}/src/googletest/src/gtest-all.cc)
  target_include_directories(packed_gtest SYSTEM PUBLIC ${prefix}/src/googletest/include PRIVATE ${prefix}/src/googletest)
  target_link_libraries(packed_gtest PUBLIC Threads::Threads)
  add_library(packed_gtest_main STATIC ${prefix}/src/googletest/src/gtest_main.cc)
  target_link_libraries(packed_gtest_main PUBLIC packed_gtest)
  add_library(GTest::gtest ALIAS packed_gtest)
  add_library(GTest::gtest_main ALIAS packed_gtest_main)
endif()
CMAKE
du -sh "$target"
