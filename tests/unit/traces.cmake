if(TARGET quire_traces)
  quire_test(traces_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/traces_test.cc LIBS quire_traces)
endif()
