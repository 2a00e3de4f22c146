find_package(Python3 COMPONENTS Interpreter)
if(Python3_FOUND)
  add_test(NAME cuda_sass_bounds WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
    COMMAND ${Python3_EXECUTABLE} ${QUIRE_TEST_DIR}/sass_bounds.py --build ${CMAKE_BINARY_DIR}
      --keep ${CMAKE_BINARY_DIR}/sass_read.json --architectures ${QUIRE_CUDA_ARCHITECTURES})
  set_tests_properties(cuda_sass_bounds PROPERTIES LABELS kernel TIMEOUT 900)
endif()
