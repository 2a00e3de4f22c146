# A few of the planted bugs with every test run; all of them by hand: tests/mutation/bookkeeping_bugs.py --build BUILD.
find_package(Python3 COMPONENTS Interpreter REQUIRED)
if(TARGET quire_sim AND NOT QUIRE_SANITIZE)  # sim_test itself is defined after this file
  add_test(NAME bookkeeping_bugs WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
    COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/bookkeeping_bugs.py --build ${CMAKE_BINARY_DIR} --quick
      --keep ${CMAKE_BINARY_DIR}/bookkeeping_bugs.json)
  set_tests_properties(bookkeeping_bugs PROPERTIES LABELS property TIMEOUT 900)
endif()
if(TARGET quire_engine AND TARGET quire_kernels_cuda AND NOT QUIRE_SANITIZE)
  add_test(NAME device_step_bugs WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
    COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/device_step_bugs.py --build ${CMAKE_BINARY_DIR} --quick)
  set_tests_properties(device_step_bugs PROPERTIES LABELS kernel TIMEOUT 600 SKIP_RETURN_CODE 77)
endif()
