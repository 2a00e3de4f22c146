foreach(device cpu cuda)
  quire_test(${device}_device_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/${device}_device_test.cc LIBS quire_device)
endforeach()
