quire_test(cuda_device_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/cuda_device_test.cc LIBS quire_device)
