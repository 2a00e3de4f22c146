# quire_library: one static library per folder. quire_test: one test program, with its label.
find_package(Threads REQUIRED)

find_program(QUIRE_CCACHE ccache)
if(QUIRE_CCACHE AND NOT CMAKE_CXX_COMPILER_LAUNCHER)
  set(CMAKE_CXX_COMPILER_LAUNCHER ${QUIRE_CCACHE})
  set(CMAKE_CUDA_COMPILER_LAUNCHER ${QUIRE_CCACHE})
endif()
find_program(QUIRE_MOLD mold)
if(QUIRE_MOLD)
  # Segments in pages of their own. Else mold 1.10 begins RELRO at a .tbss, and where that has alignment 1 and the code ends within eight
  # bytes of a page's end, at a page that is not there: the loader refuses the program ("cannot apply additional memory protection after
  # relocation"). With an aligned .tbss it never ended on a fuzz target.
  add_link_options(-fuse-ld=mold -Wl,-z,separate-loadable-segments)
endif()

option(QUIRE_WARNINGS_ARE_ERRORS "Off for compilers that nobody here has: a benchmark machine builds with what it has" ON)
add_library(quire_options INTERFACE)
target_include_directories(quire_options INTERFACE ${CMAKE_SOURCE_DIR} ${CMAKE_SOURCE_DIR}/include)
target_compile_options(quire_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra $<$<BOOL:${QUIRE_WARNINGS_ARE_ERRORS}>:-Werror> -Wno-missing-field-initializers -ffp-contract=off>)
target_link_libraries(quire_options INTERFACE Threads::Threads)
if(QUIRE_SANITIZE)
  # A finding ends the program: the undefined-behaviour sanitizer alone would print it and let the test pass.
  # -O1 and lines alone, over the build type's -O2 -g: half the time to compile and to link, and a report names the same places.
  add_compile_options(-O1 -g1 -fsanitize=${QUIRE_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${QUIRE_SANITIZE})
endif()

# What a step's planning and the simulator run. All is linked into one program: calls from one function of a file to
# another need not go through a table so that somebody may replace them, and can be inlined (benchmarks/sim, 3 % of a step).
# Nearly every one of its functions is small and called from another file, so the programs that are there for their speed
# are optimised again when they are linked (quire_optimised_link: another 5 %, 15 s of linking). The objects hold ordinary code
# beside what that needs, and all other programs, the tests among them, link that at once.
set(QUIRE_STEP_LIBRARIES quire_base quire_cache quire_policy quire_request quire_schedule quire_fake_executor
    quire_engine_core quire_sim)
# One of the two for each program: gcc leaves its linker's plugin out wherever -fno-lto stands, whatever follows.
set(quire_release_gnu "$<AND:$<CONFIG:Release>,$<CXX_COMPILER_ID:GNU>>")
add_link_options("$<${quire_release_gnu}:$<IF:$<BOOL:$<TARGET_PROPERTY:QUIRE_OPTIMISED_LINK>>,-flto=auto,-fno-lto>>")
function(quire_optimised_link program)
  set_target_properties(${program} PROPERTIES QUIRE_OPTIMISED_LINK ON)
endfunction()

# quire_library(NAME [PUBLIC libs...] SOURCES files...): libs are other quire_* folders or third-party targets.
function(quire_library name)
  cmake_parse_arguments(arg "" "" "SOURCES;PUBLIC;PRIVATE" ${ARGN})
  add_library(${name} STATIC ${arg_SOURCES})
  target_link_libraries(${name} PUBLIC quire_options ${arg_PUBLIC} PRIVATE ${arg_PRIVATE})
  if(name IN_LIST QUIRE_STEP_LIBRARIES AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${name} PRIVATE
      "$<$<AND:$<CONFIG:Release>,$<COMPILE_LANGUAGE:CXX>>:-fno-semantic-interposition;-flto=auto;-ffat-lto-objects>")
  endif()
endfunction()

# quire_test(NAME LABEL unit SOURCES files... LIBS libs...): a GoogleTest program, one CTest entry; the runner
# (tools/run_tests.py) counts its cases. TIMEOUT is in seconds (default 300).
function(quire_test name)
  cmake_parse_arguments(arg "" "LABEL;TIMEOUT" "SOURCES;LIBS" ${ARGN})
  if(NOT arg_TIMEOUT)
    set(arg_TIMEOUT 300)
  endif()
  add_executable(${name} ${arg_SOURCES})
  target_link_libraries(${name} PRIVATE quire_options ${arg_LIBS} GTest::gtest GTest::gtest_main)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  add_test(NAME ${name} COMMAND ${name} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
  set_tests_properties(${name} PROPERTIES LABELS ${arg_LABEL} TIMEOUT ${arg_TIMEOUT}
    ENVIRONMENT "QUIRE_ROOT=${CMAKE_SOURCE_DIR}")
endfunction()
