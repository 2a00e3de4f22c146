find_package(Python3 COMPONENTS Interpreter REQUIRED)
add_test(NAME format COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/format.py)
set_tests_properties(format PROPERTIES LABELS unit ENVIRONMENT "QUIRE_ROOT=${CMAKE_SOURCE_DIR}" SKIP_RETURN_CODE 77)
