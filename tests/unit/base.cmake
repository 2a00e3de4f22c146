quire_test(base_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/base_test.cc LIBS quire_base)
