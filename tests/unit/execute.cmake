if(TARGET quire_execute)
  quire_test(unit_execute LABEL unit SOURCES ${QUIRE_TEST_DIR}/execute_test.cc ${QUIRE_TEST_DIR}/prefix_groups_test.cc
    ${QUIRE_TEST_DIR}/pipelined_executor_test.cc LIBS quire_execute)
  if(TARGET quire_kernels_cuda)
    target_sources(unit_execute PRIVATE ${QUIRE_TEST_DIR}/table_deltas_test.cc ${QUIRE_TEST_DIR}/step_graphs_test.cc ${QUIRE_TEST_DIR}/step_gaps_test.cc ${QUIRE_TEST_DIR}/device_retention_test.cc
      ${QUIRE_TEST_DIR}/device_retention_cuts_test.cc ${QUIRE_TEST_DIR}/step_forms_test.cc)
  endif()
  quire_test(disk_test LABEL unit SOURCES ${QUIRE_TEST_DIR}/disk_test.cc ${QUIRE_TEST_DIR}/disk_mover_test.cc ${QUIRE_TEST_DIR}/threaded_mover_test.cc LIBS quire_movers)
endif()
