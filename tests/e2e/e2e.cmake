# The Python suites. Each file is one test: files share nothing but the binary.
if(QUIRE_SANITIZE OR NOT TARGET quire)
  return()
endif()
find_package(Python3 COMPONENTS Interpreter REQUIRED)
set(QUIRE_PYTHON ${CMAKE_SOURCE_DIR}/.venv/bin/python)  # `./quire setup` makes it
if(NOT EXISTS ${QUIRE_PYTHON})
  set(QUIRE_PYTHON ${Python3_EXECUTABLE})
endif()
foreach(suite e2e install)
  file(GLOB files CONFIGURE_DEPENDS ${CMAKE_SOURCE_DIR}/tests/${suite}/test_*.py)
  foreach(file ${files})
    get_filename_component(name ${file} NAME_WE)
    string(REGEX REPLACE "^test_" "${suite}_" name ${name})
    add_test(NAME ${name} COMMAND ${QUIRE_PYTHON} -m pytest -q -rs -p no:cacheprovider ${file} WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(${name} PROPERTIES LABELS ${suite} TIMEOUT 1200
      ENVIRONMENT "QUIRE_BINARY=${CMAKE_BINARY_DIR}/quire;QUIRE_BUILD=${CMAKE_BINARY_DIR};QUIRE_ROOT=${CMAKE_SOURCE_DIR}")
  endforeach()
endforeach()
