find_package(Python3 COMPONENTS Interpreter REQUIRED)
add_test(NAME layering COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/layering.py)
set_tests_properties(layering PROPERTIES LABELS unit ENVIRONMENT "QUIRE_ROOT=${CMAKE_SOURCE_DIR}")
