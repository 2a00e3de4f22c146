quire_test(policy_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/policy_test.cc LIBS quire_policy)
