quire_test(sample_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/sample_test.cc LIBS quire_sample)
