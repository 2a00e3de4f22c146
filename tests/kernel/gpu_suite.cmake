find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  add_test(NAME gpu_suite_peers WORKING_DIRECTORY ${CMAKE_SOURCE_DIR} COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/suite_peers.py)
  set_tests_properties(gpu_suite_peers PROPERTIES LABELS kernel TIMEOUT 120)
endif()
# Needs the programs that the suite runs: a build with CUDA and benchmarks. No card: they run on the host shim.
if(Python3_FOUND AND TARGET quire_kernels_cuda AND TARGET quire_engine AND QUIRE_HAVE_CUDA AND QUIRE_BENCHMARKS AND NOT QUIRE_SANITIZE)
  add_test(NAME gpu_suite_dry_run WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
    COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/gpu_suite.py --build ${CMAKE_BINARY_DIR})
  set_tests_properties(gpu_suite_dry_run PROPERTIES LABELS kernel TIMEOUT 900)
endif()
