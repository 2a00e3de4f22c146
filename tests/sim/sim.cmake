if(TARGET quire_sim)
  quire_test(sim_test LABEL sim SOURCES ${QUIRE_TEST_DIR}/sim_test.cc ${QUIRE_TEST_DIR}/sim_script_test.cc LIBS quire_sim)
  quire_test(sim_plot_test LABEL sim SOURCES ${QUIRE_TEST_DIR}/plot_test.cc ${QUIRE_TEST_DIR}/report_test.cc LIBS quire_sim)
endif()
