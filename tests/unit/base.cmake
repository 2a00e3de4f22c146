quire_test(base_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/base_test.cc ${QUIRE_TEST_DIR}/cgroup_limit_test.cc LIBS quire_base)
