quire_test(sample_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/sample_test.cc ${QUIRE_TEST_DIR}/processors_test.cc LIBS quire_sample)
