if(TARGET quire_execute)
  quire_test(unit_execute LABEL unit SOURCES ${QUIRE_TEST_DIR}/execute_test.cc ${QUIRE_TEST_DIR}/prefix_groups_test.cc LIBS quire_execute)
endif()
