find_package(Python3 COMPONENTS Interpreter REQUIRED)
add_test(NAME step_trace COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/step_trace.py)
set_tests_properties(step_trace PROPERTIES LABELS unit)
